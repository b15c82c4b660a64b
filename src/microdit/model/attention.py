"""Attention with normalised queries and keys: over patches, and from patches to caption tokens."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.operations import FORMULAS


def attention_width(dim: int, ratio: float, head_dim: int) -> int:
    """Width of a self-attention layer under layer-wise scaling: whole pairs of heads, at least dim * ratio."""
    return dim if ratio == 1 else 2 * head_dim * math.ceil(int(dim * ratio) / (2 * head_dim))


class SelfAttention(nn.Module):
    """Attention among tokens, of width dim * ratio."""

    operations = FORMULAS

    def __init__(self, dim: int, ratio: float, head_dim: int, bias: bool, norm_eps: float):
        super().__init__()
        width = attention_width(dim, ratio, head_dim)
        self.head_dim, self.norm_eps = head_dim, norm_eps
        self.qkv = nn.Linear(dim, 3 * width, bias=bias)
        self.proj = nn.Linear(width, dim, bias=bias)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        sizes = {"head_dim": self.head_dim, "norm_eps": self.norm_eps}
        return self.proj(self.operations.normalised_attention(self.qkv(x), **sizes))


class ReadCaptions(NamedTuple):
    """What one cross-attention takes from captions: neither patches nor noise are in it, so sampling reads only once.

    `keys_and_values` are as `kv_linear` gives them, not normalised yet. `without_caption` is the layer's whole output
    for samples whose caption is zeros, as guidance has them.
    """

    keys_and_values: Float[Tensor, "m l d2"]
    without_caption: Float[Tensor, "1 1 d"]


class CrossAttention(nn.Module):
    """Attention from patches to caption tokens; its width is never scaled."""

    operations = FORMULAS

    def __init__(self, dim: int, head_dim: int, bias: bool, norm_eps: float):
        super().__init__()
        self.head_dim, self.norm_eps = head_dim, norm_eps
        self.q_linear = nn.Linear(dim, dim, bias=bias)
        self.kv_linear = nn.Linear(dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(
        self, x: Float[Tensor, "n t d"], captions: Float[Tensor, "n l d"] | ReadCaptions
    ) -> Float[Tensor, "n t d"]:
        """With captions read before, the samples of `x` beyond their number are those without caption."""
        if isinstance(captions, Tensor):
            return self.attend(x, self.kv_linear(captions))
        attended = self.attend(x[: len(captions.keys_and_values)], captions.keys_and_values)
        return torch.cat([attended, captions.without_caption.expand_as(x[len(attended) :])])

    def attend(self, x: Float[Tensor, "n t d"], keys_and_values: Float[Tensor, "n l d2"]) -> Float[Tensor, "n t d"]:
        sizes = {"head_dim": self.head_dim, "norm_eps": self.norm_eps}
        return self.proj(self.operations.normalised_attention(self.q_linear(x), keys_and_values, **sizes))

    def read(self, captions: Float[Tensor, "m l d"]) -> ReadCaptions:
        """Keys and values of all captions but the last, which has to be that of zeros.

        Its tokens are all the same vector, so each patch gets that vector's value, however it spreads its attention.
        """
        keys_and_values = self.kv_linear(captions)
        _, value = keys_and_values[-1:, :1].chunk(2, dim=-1)
        return ReadCaptions(keys_and_values[:-1], self.proj(value))
