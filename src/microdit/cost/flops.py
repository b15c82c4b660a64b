"""What training costs, from counting: floating-point operations, seconds, dollars."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from microdit.model.dit import DiT


def training_flops_per_image(network: DiT, mask_ratio: float, caption_length: int) -> int:
    """Forward and backward FLOPs of one image, as torch counts them on the real network (a multiply-add is two).

    Nothing is allocated: the network is copied to the meta device. Gathering tokens for experts is not work, nor is
    what fused attention computes a second time in the backward pass.
    """
    with FlopCounterMode(display=False) as counter:
        forward_on_meta(network, mask_ratio, caption_length).sum().backward()
    return counter.get_total_flops()


def forward_flops_per_image(network: DiT, mask_ratio: float, caption_length: int) -> int:
    """The same without the backward pass: a third, quicker to count where networks are only compared."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward_on_meta(network, mask_ratio, caption_length)
    return counter.get_total_flops()


def forward_on_meta(network: DiT, mask_ratio: float, caption_length: int) -> Tensor:
    """The output for one image of the training size, of a copy of the network without weights, under a mask."""
    meta = on_meta(network).train()
    rows, columns = meta.trained_grid
    with torch.device("meta"):
        latents = torch.empty(1, meta.in_channels, meta.input_size, meta.input_size)
        captions = torch.empty(1, caption_length, meta.caption_channels)
        kept = meta.token_path.keep(torch.empty(1, rows * columns), mask_ratio, meta.trained_grid)
        return meta(latents, torch.empty(1), captions, kept)


def on_meta(network: DiT) -> DiT:
    """A copy without weights: the same modules, every parameter and buffer on the meta device."""
    # deepcopy takes what its memo holds for an object instead of copying the object.
    memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in network.parameters()}
    memo |= {id(buffer): buffer.to("meta") for buffer in network.buffers()}
    return copy.deepcopy(network, memo)


def kept_tokens(network: DiT, mask_ratio: float) -> tuple[int, int]:
    """(patches the backbone sees, all patches) of one image at the network's training size."""
    rows, columns = network.trained_grid
    kept = network.token_path.keep(torch.zeros(1, rows * columns), mask_ratio, network.trained_grid)
    return rows * columns if kept is None else kept.indices.shape[1], rows * columns
