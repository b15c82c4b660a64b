"""Attention with normalised queries and keys: over patches, and from patches to caption tokens."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def attention_width(dim: int, ratio: float, head_dim: int) -> int:
    """Width of a self-attention layer under layer-wise scaling: whole pairs of heads, at least dim * ratio."""
    return dim if ratio == 1 else 2 * head_dim * math.ceil(int(dim * ratio) / (2 * head_dim))


def normalise(x: Float[Tensor, "n t h"], norm_eps: float) -> Float[Tensor, "n t h"]:
    """Layer norm without weight over the full width, all heads together: keeps attention logits bounded."""
    return F.layer_norm(x, x.shape[-1:], eps=norm_eps)


def split_heads(x: Float[Tensor, "n t h"], head_dim: int) -> Float[Tensor, "n heads t head_dim"]:
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attend(
    queries: Float[Tensor, "n t h"], keys: Float[Tensor, "n l h"], values: Float[Tensor, "n l h"], head_dim: int
) -> Float[Tensor, "n t h"]:
    """Scaled dot-product attention, head by head."""
    q, k, v = (split_heads(x, head_dim) for x in (queries, keys, values))
    # torch's fused kernel is up to five times slower than these products in bfloat16 on a CPU (benchmarks/RESULTS.md).
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and k.shape[-2] <= 256:
        attended = (q * head_dim**-0.5 @ k.mT).softmax(dim=-1) @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v)
    return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Attention among tokens, of width dim * ratio."""

    def __init__(self, dim: int, ratio: float, head_dim: int, bias: bool, norm_eps: float):
        super().__init__()
        width = attention_width(dim, ratio, head_dim)
        self.head_dim, self.norm_eps = head_dim, norm_eps
        self.qkv = nn.Linear(dim, 3 * width, bias=bias)
        self.proj = nn.Linear(width, dim, bias=bias)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        queries, keys, values = self.qkv(x).chunk(3, dim=-1)
        queries, keys = normalise(queries, self.norm_eps), normalise(keys, self.norm_eps)
        return self.proj(attend(queries, keys, values, self.head_dim))


class ReadCaptions(NamedTuple):
    """What one cross-attention takes from captions: neither patches nor noise are in it, so sampling reads only once.

    `without_caption` is the layer's whole output for samples whose caption is zeros, as guidance has them.
    """

    keys: Float[Tensor, "m l d"]
    values: Float[Tensor, "m l d"]
    without_caption: Float[Tensor, "1 1 d"]


class CrossAttention(nn.Module):
    """Attention from patches to caption tokens; its width is never scaled."""

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
            return self.attend(x, *self.keys_and_values(captions))
        attended = self.attend(x[: len(captions.keys)], captions.keys, captions.values)
        return torch.cat([attended, captions.without_caption.expand_as(x[len(attended) :])])

    def attend(
        self, x: Float[Tensor, "n t d"], keys: Float[Tensor, "n l d"], values: Float[Tensor, "n l d"]
    ) -> Float[Tensor, "n t d"]:
        queries = normalise(self.q_linear(x), self.norm_eps)
        return self.proj(attend(queries, keys, values, self.head_dim))

    def keys_and_values(
        self, captions: Float[Tensor, "n l d"]
    ) -> tuple[Float[Tensor, "n l d"], Float[Tensor, "n l d"]]:
        keys, values = self.kv_linear(captions).chunk(2, dim=-1)
        return normalise(keys, self.norm_eps), values

    def read(self, captions: Float[Tensor, "m l d"]) -> ReadCaptions:
        """Keys and values of all captions but the last, which has to be that of zeros.

        Its tokens are all the same vector, so each patch gets that vector's value, however it spreads its attention.
        """
        keys, values = self.keys_and_values(captions)
        return ReadCaptions(keys[:-1], values[:-1], self.proj(values[-1:, :1]))
