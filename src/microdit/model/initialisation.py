"""How a fresh network is initialised (measured statistics of every parameter: tests/golden/initial_statistics_tiny)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.blocks import CaptionBlock, DiTBlock
from microdit.model.layers import GELUFeedForward, SwiGLU
from microdit.model.mixture_of_experts import ExpertChoice

if TYPE_CHECKING:
    from microdit.model.dit import DiT


def initialise(network: DiT, depth_init: bool, std: float, alike_queries_and_keys: float) -> None:
    """Fills every parameter in place. The network's output is exactly zero afterwards.

    `std` is that of the weights of blocks, captions and noise levels. With `depth_init` the layers that write into the
    residual stream shrink with their depth, block by block; otherwise all of them by the backbone's depth.
    `alike_queries_and_keys` is the correlation of the patch-mixer's query and key weights (after the mimetic
    initialisation of Trockman & Kolter 2023).
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(network.x_embedder.proj.weight.flatten(1))
    y_proj, pooled = network.y_embedder.y_proj, network.pooled_y_emb_process
    for mlp in (network.t_embedder.mlp, y_proj, pooled):
        for layer in mlp.children():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=std)

    depth = len(network.blocks)
    backbone = [cast(DiTBlock, block) for block in network.blocks]
    # Patch-mixer, and the blocks that a token path has of its own.
    light = [module for module in network.modules() if isinstance(module, DiTBlock) and module not in backbone]
    for i, block in enumerate(backbone):
        initialise_block(block, std=std, residual_std=std / math.sqrt(2 * (i + 1 if depth_init else depth)))
    for block in light:
        initialise_block(block, std=std, residual_std=std / math.sqrt(2 * depth))
    if alike_queries_and_keys:
        for block in network.patch_mixer:
            liken_keys_to_queries(cast(DiTBlock, block).attn.qkv.weight, alike_queries_and_keys)
    initialise_attention_and_mlp(network.y_emb_preprocess, std, residual_std=std)

    # Every block starts as the identity and the output as zero: the first steps learn scales before directions.
    for modulated in (*backbone, *light, network.final_layer):
        nn.init.zeros_(cast(nn.Linear, modulated.adaLN_modulation[1]).weight)
    nn.init.zeros_(network.y_emb_preprocess.attn.proj.weight)
    nn.init.zeros_(network.y_emb_preprocess.mlp.w3.weight)
    nn.init.zeros_(network.final_layer.linear.weight)


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
