"""Attention with normalised queries and keys: over patches, and from patches to caption tokens."""

import math

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
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


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


class CrossAttention(nn.Module):
    """Attention from patches to caption tokens; its width is never scaled."""

    def __init__(self, dim: int, head_dim: int, bias: bool, norm_eps: float):
        super().__init__()
        self.head_dim, self.norm_eps = head_dim, norm_eps
        self.q_linear = nn.Linear(dim, dim, bias=bias)
        self.kv_linear = nn.Linear(dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Float[Tensor, "n t d"], captions: Float[Tensor, "n l d"]) -> Float[Tensor, "n t d"]:
        keys, values = self.kv_linear(captions).chunk(2, dim=-1)
        queries, keys = normalise(self.q_linear(x), self.norm_eps), normalise(keys, self.norm_eps)
        return self.proj(attend(queries, keys, values, self.head_dim))
