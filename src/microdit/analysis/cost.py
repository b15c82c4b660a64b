"""What training costs, from counting: floating-point operations, seconds, dollars."""

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from microdit.model.dit import DiT
from microdit.model.masking import keep_patches, kept_count


def training_flops_per_image(network: DiT, mask_ratio: float, caption_length: int) -> int:
    """Forward and backward FLOPs of one image, as torch counts them on the real network (a multiply-add is two).

    Nothing is allocated: the network is copied to the meta device. Gathering tokens for experts is not work, nor is
    what fused attention computes a second time in the backward pass.
    """
    meta = on_meta(network).train()
    with torch.device("meta"):
        latents = torch.empty(1, meta.in_channels, meta.input_size, meta.input_size)
        captions = torch.empty(1, caption_length, meta.caption_channels)
        rows, columns = meta.grid(latents)
        kept = keep_patches(torch.empty(1, rows * columns), mask_ratio)
        counter = FlopCounterMode(display=False)
        with counter:
            meta(latents, torch.empty(1), captions, kept).sum().backward()
    return counter.get_total_flops()


def on_meta(network: DiT) -> DiT:
    """A copy without weights: the same modules, every parameter and buffer on the meta device."""
    # deepcopy takes what its memo holds for an object instead of copying the object.
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in network.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    return copy.deepcopy(network, memo)


def kept_tokens(network: DiT, mask_ratio: float) -> tuple[int, int]:
    """(patches the backbone sees, all patches) of one image at the network's training size."""
    side = network.input_size // network.patch_size
    return kept_count(side * side, mask_ratio), side * side
