"""How a fresh network is initialised (measured statistics of every parameter: tests/golden/initial_statistics_tiny)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from torch import nn

from microdit.model.blocks import CaptionBlock, DiTBlock
from microdit.model.layers import GELUFeedForward, SwiGLU
from microdit.model.mixture_of_experts import ExpertChoice

if TYPE_CHECKING:
    from microdit.model.dit import DiT

EMBEDDING_STD = 0.02
BLOCK_STD = 0.02


def initialise(network: DiT, depth_init: bool) -> None:
    """Fills every parameter in place. The network's output is exactly zero afterwards.

    With `depth_init` the layers that write into the residual stream shrink with their depth, block by block; otherwise
    all of them by the backbone's depth.
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
                nn.init.normal_(layer.weight, std=EMBEDDING_STD)

    depth = len(network.blocks)
    backbone = [cast(DiTBlock, block) for block in network.blocks]
    # Patch-mixer, and the blocks that a token path has of its own.
    light = [module for module in network.modules() if isinstance(module, DiTBlock) and module not in backbone]
    for i, block in enumerate(backbone):
        initialise_block(block, residual_std=BLOCK_STD / math.sqrt(2 * (i + 1 if depth_init else depth)))
    for block in light:
        initialise_block(block, residual_std=BLOCK_STD / math.sqrt(2 * depth))
    initialise_attention_and_mlp(network.y_emb_preprocess, residual_std=BLOCK_STD)

    # Every block starts as the identity and the output as zero: the first steps learn scales before directions.
    for modulated in (*backbone, *light, network.final_layer):
        nn.init.zeros_(cast(nn.Linear, modulated.adaLN_modulation[1]).weight)
    nn.init.zeros_(network.y_emb_preprocess.attn.proj.weight)
    nn.init.zeros_(network.y_emb_preprocess.mlp.w3.weight)
    nn.init.zeros_(network.final_layer.linear.weight)


def initialise_block(block: DiTBlock, residual_std: float) -> None:
    initialise_attention_and_mlp(block, residual_std)
    nn.init.trunc_normal_(block.cross_attn.q_linear.weight, std=BLOCK_STD)
    nn.init.trunc_normal_(block.cross_attn.kv_linear.weight, std=BLOCK_STD)
    nn.init.trunc_normal_(block.cross_attn.proj.weight, std=residual_std)


def initialise_attention_and_mlp(block: DiTBlock | CaptionBlock, residual_std: float) -> None:
    nn.init.trunc_normal_(block.attn.qkv.weight, std=BLOCK_STD)
    nn.init.trunc_normal_(block.attn.proj.weight, std=residual_std)
    if isinstance(block.mlp, ExpertChoice):
        nn.init.trunc_normal_(block.mlp.gate.weight, std=BLOCK_STD)
        nn.init.trunc_normal_(block.mlp.w1, std=BLOCK_STD)
        nn.init.trunc_normal_(block.mlp.w2, std=residual_std)
    elif isinstance(block.mlp, SwiGLU):
        nn.init.trunc_normal_(block.mlp.w1.weight, std=BLOCK_STD)
        nn.init.trunc_normal_(block.mlp.w2.weight, std=residual_std)
        nn.init.trunc_normal_(block.mlp.w3.weight, std=residual_std)
    elif isinstance(block.mlp, GELUFeedForward):
        nn.init.trunc_normal_(block.mlp.w1.weight, std=BLOCK_STD)
        nn.init.trunc_normal_(block.mlp.w2.weight, std=residual_std)
