"""Compiling a network for the device that it runs on: the same numbers, sooner."""

from typing import Any, cast

import torch

from microdit.kernels.cpu.operations import load_fused_operations
from microdit.model.blocks import DiTBlock
from microdit.model.dit import DiT


def compile_network(network: DiT, device_type: str) -> None:
    """Compiles what pays: the blocks' operations on a "cpu", whole blocks on any other kind of device.

    Raises CompilerError where operations cannot be compiled.
    """
    if device_type == "cpu":
        fuse_operations(network)
    else:
        compile_blocks(network)


def fuse_operations(network: DiT) -> None:
    """Attention, modulated norms and gates on a CPU by functions that were compiled for it (kernels/cpu).

    Raises CompilerError where they cannot be compiled.
    """
    fused = load_fused_operations()
    for module in network.modules():
        if hasattr(module, "operations"):
            cast(Any, module).operations = fused


def compile_blocks(network: DiT) -> None:
    """Compiles each block by itself: quick to compile, any number of patches, the same state-dict keys."""
    blocks = [module for module in network.modules() if isinstance(module, DiTBlock)]
    # Layer-wise scaling makes most blocks' graphs their own, for training and for sampling; beyond dynamo's limit,
    # 8 for all of them together, blocks would run uncompiled.
    limit = 4 * len(blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    for block in blocks:
        block.compile(dynamic=True)
