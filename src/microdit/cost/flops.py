"""What training costs, from counting: floating-point operations, seconds, dollars."""

import copy
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from microdit.model.dit import DiT
from microdit.model.operations import FORMULAS, use_operations

aten = torch.ops.aten
Layers = TypeVar("Layers", bound=nn.Module)
LIKE_ITS_INPUT = {aten.gelu, aten.gelu_backward, aten._softmax, aten._safe_softmax, aten._softmax_backward_data}


class FlopCounter(TorchDispatchMode):
    """Adds up torch's own formulas in a third of the time of its FlopCounterMode on the meta device: there torch works
    out in Python what shape comes out of a layer norm or softmax, which is well known."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation, kwargs = func.overloadpacket, kwargs or {}
        if operation in LIKE_ITS_INPUT:
            return torch.empty_like(args[0])
        if operation is aten.native_layer_norm:
            statistic = args[0].new_empty(*args[0].shape[: -len(args[1])], *[1] * len(args[1]))
            return torch.empty_like(args[0]), statistic, torch.empty_like(statistic)
        if operation is aten.native_layer_norm_backward:
            return tuple(None if tensor is None else torch.empty_like(tensor) for tensor in (args[1], *args[5:7]))
        out = func(*args, **kwargs)
        if operation in flop_registry:
            self.flops += flop_registry[operation](*args, **kwargs, out_val=out)
        return out


def training_flops_per_image(
    network: DiT, mask_ratio: float, caption_length: int, shares: Mapping[tuple[int, ...], float] | None = None
) -> int:
    """Forward and backward FLOPs of one image, as torch counts them on the real network (a multiply-add is two).
    `shares`: of the shapes that latents have, of which it is the mean; None: all have that of training.

    Nothing is allocated: the network is copied to the meta device. Gathering tokens for experts is not work, nor is
    what fused attention computes a second time in the backward pass.
    """
    flops = 0.0
    for shape, share in (shares or {(network.input_size, network.input_size): 1.0}).items():
        with FlopCounter() as counter:
            forward_on_meta(network, mask_ratio, caption_length, shape[-2:]).sum().backward()
        flops += share * counter.flops
    return round(flops)


def forward_flops_per_image(network: DiT, mask_ratio: float, caption_length: int) -> int:
    """The same without the backward pass: a third, quicker to count where networks are only compared."""
    with FlopCounter() as counter, torch.no_grad():
        forward_on_meta(network, mask_ratio, caption_length)
    return counter.flops


def forward_on_meta(
    network: DiT, mask_ratio: float, caption_length: int, size: tuple[int, ...] | None = None
) -> Tensor:
    """The output for one image, of the training size or one whose latents have this height and width, of a copy of the
    network without weights, under a mask."""
    meta = on_meta(network).train()
    use_operations(meta, FORMULAS)  # what is compiled is compiled for numbers that are there
    height, width = size or (meta.input_size, meta.input_size)
    with torch.device("meta"):
        latents = torch.empty(1, meta.in_channels, height, width)
        rows, columns = grid = meta.grid(latents)
        kept = meta.token_path.keep(torch.empty(1, rows * columns), mask_ratio, grid)
        return meta(latents, torch.empty(1), torch.empty(1, caption_length, meta.caption_channels), kept)


def on_meta(network: Layers) -> Layers:
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
