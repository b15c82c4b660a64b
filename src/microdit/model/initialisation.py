"""How blocks are initialised (measured statistics of every parameter: tests/golden/initial_statistics_tiny)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.blocks import CaptionBlock, DiTBlock
from microdit.model.feed_forward import ExpertChoice, GELUFeedForward, SwiGLU


@torch.no_grad()
def truncated_normal_(weight: Tensor, std: float) -> None:
    """torch's, which ends at -2 and 2: a hundred deviations. In torch 2.11 it draws one -2 in 17 million, hence the
    clamp, which is beyond what a normal distribution gives. On the meta device there is nothing to draw."""
    if not weight.is_meta:
        nn.init.trunc_normal_(weight, std=std)  # None where diffusers, which reads the weights next, skips it
        weight.clamp_(-7 * std, 7 * std)


def initialise_block(block: DiTBlock, std: float, residual_std: float) -> None:
    initialise_attention_and_mlp(block, std, residual_std)
    truncated_normal_(block.cross_attn.q_linear.weight, std=std)
    truncated_normal_(block.cross_attn.kv_linear.weight, std=std)
    truncated_normal_(block.cross_attn.proj.weight, std=residual_std)


def initialise_attention_and_mlp(block: DiTBlock | CaptionBlock, std: float, residual_std: float) -> None:
    truncated_normal_(block.attn.qkv.weight, std=std)
    truncated_normal_(block.attn.proj.weight, std=residual_std)
    if isinstance(block.mlp, ExpertChoice):
        truncated_normal_(block.mlp.gate.weight, std=std)
        truncated_normal_(block.mlp.w1, std=std)
        truncated_normal_(block.mlp.w2, std=residual_std)
    elif isinstance(block.mlp, SwiGLU):
        truncated_normal_(block.mlp.w1.weight, std=std)
        truncated_normal_(block.mlp.w2.weight, std=residual_std)
        truncated_normal_(block.mlp.w3.weight, std=residual_std)
    elif isinstance(block.mlp, GELUFeedForward):
        truncated_normal_(block.mlp.w1.weight, std=std)
        truncated_normal_(block.mlp.w2.weight, std=residual_std)


@torch.no_grad()
def liken_keys_to_queries(qkv: Float[Tensor, "qkv d"], correlation: float) -> None:
    """Correlates the weights of keys with those of queries, in place; their deviation stays."""
    queries, keys, _ = qkv.chunk(3)
    keys.mul_(math.sqrt(1 - correlation**2)).add_(queries, alpha=correlation)
