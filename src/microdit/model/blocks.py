"""Attention, and the blocks made of it: over caption tokens, over patches for patch-mixer and backbone; the output."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from microdit.model.embeddings import in_full_precision
from microdit.model.feed_forward import SwiGLU
from microdit.model.operations import FORMULAS, WeightedNorm


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

    def forward(self, x: Float[Tensor, "n t d"], present: Bool[Tensor, "n t"] | None = None) -> Float[Tensor, "n t d"]:
        """`present`: the tokens that are attended to; None: all of them."""
        sizes = {"head_dim": self.head_dim, "norm_eps": self.norm_eps}
        told = {} if present is None else {"present": present}
        return self.proj(self.operations.normalised_attention(self.qkv(x), **sizes, **told))


class ReadCaptions(NamedTuple):
    """What one cross-attention takes from captions: neither patches nor noise are in it, so sampling reads only once.

    `keys_and_values` are as `kv_linear` gives them, not normalised yet. `without_caption` is the layer's whole output
    for samples whose caption is zeros, as guidance has them. `present`: what of the captions is no padding, where it is
    not attended to.
    """

    keys_and_values: Float[Tensor, "m l d2"]
    without_caption: Float[Tensor, "1 1 d"]
    present: Bool[Tensor, "m l"] | None = None


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
        self,
        x: Float[Tensor, "n t d"],
        captions: Float[Tensor, "n l d"] | ReadCaptions,
        present: Bool[Tensor, "n l"] | None = None,
    ) -> Float[Tensor, "n t d"]:
        """With captions read before, which know what is present, the samples of `x` beyond their number are those
        without caption."""
        if isinstance(captions, Tensor):
            return self.attend(x, self.kv_linear(captions), present)
        if not len(captions.keys_and_values):
            return captions.without_caption.expand_as(x)
        attended = self.attend(x[: len(captions.keys_and_values)], captions.keys_and_values, captions.present)
        return torch.cat([attended, captions.without_caption.expand_as(x[len(attended) :])])

    def attend(
        self,
        x: Float[Tensor, "n t d"],
        keys_and_values: Float[Tensor, "n l d2"],
        present: Bool[Tensor, "n l"] | None = None,
    ) -> Float[Tensor, "n t d"]:
        sizes = {"head_dim": self.head_dim, "norm_eps": self.norm_eps}
        told = {} if present is None else {"present": present}
        return self.proj(self.operations.normalised_attention(self.q_linear(x), keys_and_values, **sizes, **told))

    def read(self, captions: Float[Tensor, "m l d"], present: Bool[Tensor, "m l"] | None = None) -> ReadCaptions:
        """Keys and values of all captions but the last, which has to be that of zeros.

        Its tokens are all the same vector, so each patch gets that vector's value, however it spreads its attention.
        """
        keys_and_values = self.kv_linear(captions)
        _, value = keys_and_values[-1:, :1].chunk(2, dim=-1)
        return ReadCaptions(keys_and_values[:-1], self.proj(value), None if present is None else present[:-1])


class CaptionBlock(nn.Module):
    """One pre-norm transformer block over caption tokens, shared by all blocks that read the caption."""

    def __init__(self, dim: int, head_dim: int, multiple_of: int, bias: bool, norm_eps: float):
        super().__init__()
        self.norm1 = WeightedNorm(dim, norm_eps)
        self.attn = SelfAttention(dim, 1.0, head_dim, bias, norm_eps)
        self.norm2 = WeightedNorm(dim, norm_eps)
        self.mlp = SwiGLU(dim, 4.0, multiple_of, bias)

    def forward(
        self, captions: Float[Tensor, "n l d"], present: Bool[Tensor, "n l"] | None = None
    ) -> Float[Tensor, "n l d"]:
        sums = captions.to(self.norm1.weight.dtype)  # under autocast they are to be more precise than what is added
        sums = sums + self.attn(self.norm1(sums), present)
        return (sums + self.mlp(self.norm2(sums))).to(captions.dtype)  # cast once, not by every block that reads them


class ConditioningLinear(nn.Sequential):
    """adaLN: the conditioning vector through GELU-tanh and one linear layer, whose outputs shift, scale and gate."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__(nn.GELU(approximate="tanh"), nn.Linear(dim, out_dim))

    def forward(self, conditioning: Float[Tensor, "n d"]) -> Float[Tensor, "n _"]:
        return in_full_precision(super().forward, conditioning, next(self.parameters()).dtype)


class DiTBlock(nn.Module):
    """Self-attention and feed-forward, modulated and gated by the conditioning; captions enter in between, ungated.

    `feed_forward` is a SwiGLU or an ExpertChoice of width `dim`; `conditioning_dim` is the backbone's width. With
    `keeps_activations` False the forward pass is computed a second time where the backward pass needs it.
    """

    operations = FORMULAS
    keeps_activations = True

    def __init__(
        self,
        dim: int,
        conditioning_dim: int,
        attention_ratio: float,
        head_dim: int,
        bias: bool,
        norm_eps: float,
        feed_forward: nn.Module,
    ):
        super().__init__()
        self.norm1 = WeightedNorm(dim, norm_eps)
        self.attn = SelfAttention(dim, attention_ratio, head_dim, bias, norm_eps)
        self.cross_attn = CrossAttention(dim, head_dim, bias, norm_eps)
        self.norm2 = WeightedNorm(dim, norm_eps)
        self.norm3 = WeightedNorm(dim, norm_eps)
        self.mlp = feed_forward
        self.adaLN_modulation = ConditioningLinear(conditioning_dim, 6 * dim)

    def forward(
        self,
        x: Float[Tensor, "n t d"],
        captions: Float[Tensor, "n l d"] | ReadCaptions,
        conditioning: Float[Tensor, "n dc"],
        present: Bool[Tensor, "n l"] | None = None,
    ) -> Float[Tensor, "n t d"]:
        """`present`: the caption tokens that are attended to; None: all of them."""
        given = x, captions, conditioning, present
        if self.keeps_activations or not torch.is_grad_enabled():
            return self.transform(*given)
        return checkpoint(self.transform, *given, use_reentrant=False, preserve_rng_state=False)

    def transform(
        self,
        x: Float[Tensor, "n t d"],
        captions: Float[Tensor, "n l d"] | ReadCaptions,
        conditioning: Float[Tensor, "n dc"],
        present: Bool[Tensor, "n l"] | None,
    ) -> Float[Tensor, "n t d"]:
        modulation = self.adaLN_modulation(conditioning).chunk(6, dim=-1)
        shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = modulation
        # Each sum and the norm of it together: compiled, they are one pass over memory.
        x, normed = self.operations.add_then_modulated_norm(x, None, self.norm1, shift_attn, scale_attn)
        x, normed = self.operations.add_gated_then_norm(x, gate_attn, self.attn(normed), self.norm2)
        told = self.cross_attn(normed, captions, present)
        x, normed = self.operations.add_then_modulated_norm(x, told, self.norm3, shift_mlp, scale_mlp)
        return self.operations.add_gated(x, gate_mlp, self.mlp(normed))


class FinalLayer(nn.Module):
    """Maps a token to the p * p * C values of its patch, ordered (row in patch, column in patch, channel)."""

    operations = FORMULAS

    def __init__(self, dim: int, patch_values: int, norm_eps: float):
        super().__init__()
        self.norm_final = WeightedNorm(dim, norm_eps)
        self.linear = nn.Linear(dim, patch_values)
        self.adaLN_modulation = ConditioningLinear(dim, 2 * dim)

    def forward(self, x: Float[Tensor, "n t d"], conditioning: Float[Tensor, "n d"]) -> Float[Tensor, "n t v"]:
        shift, scale = self.adaLN_modulation(conditioning).chunk(2, dim=-1)
        return self.linear(self.operations.modulated_norm(x, self.norm_final, shift, scale))
