"""How blocks are initialised (measured statistics of every parameter: tests/golden/initial_statistics_tiny)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.blocks import CaptionBlock, DiTBlock
from microdit.model.feed_forward import ExpertChoice, GELUFeedForward, SwiGLU


def initialise_block(block: DiTBlock, std: float, residual_std: float) -> None:
    initialise_attention_and_mlp(block, std, residual_std)
    nn.init.trunc_normal_(block.cross_attn.q_linear.weight, std=std)
    nn.init.trunc_normal_(block.cross_attn.kv_linear.weight, std=std)
    nn.init.trunc_normal_(block.cross_attn.proj.weight, std=residual_std)


def initialise_attention_and_mlp(block: DiTBlock | CaptionBlock, std: float, residual_std: float) -> None:
    nn.init.trunc_normal_(block.attn.qkv.weight, std=std)
    nn.init.trunc_normal_(block.attn.proj.weight, std=residual_std)
    if isinstance(block.mlp, ExpertChoice):
        nn.init.trunc_normal_(block.mlp.gate.weight, std=std)
        nn.init.trunc_normal_(block.mlp.w1, std=std)
        nn.init.trunc_normal_(block.mlp.w2, std=residual_std)
    elif isinstance(block.mlp, SwiGLU):
        nn.init.trunc_normal_(block.mlp.w1.weight, std=std)
        nn.init.trunc_normal_(block.mlp.w2.weight, std=residual_std)
        nn.init.trunc_normal_(block.mlp.w3.weight, std=residual_std)
    elif isinstance(block.mlp, GELUFeedForward):
        nn.init.trunc_normal_(block.mlp.w1.weight, std=std)
        nn.init.trunc_normal_(block.mlp.w2.weight, std=residual_std)


@torch.no_grad()
def liken_keys_to_queries(qkv: Float[Tensor, "qkv d"], correlation: float) -> None:
    """Correlates the weights of keys with those of queries, in place; their deviation stays."""
    queries, keys, _ = qkv.chunk(3)
    keys.mul_(math.sqrt(1 - correlation**2)).add_(queries, alpha=correlation)
