"""What training holds in the memory of each device, from counting: nothing is allocated."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from microdit.model.blocks import CaptionBlock, DiTBlock
from microdit.model.dit import DiT
from microdit.model.operations import FORMULAS, use_operations

FLOAT32, BFLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device that holds most. `working` is what FSDP puts together of the others' parts: two blocks'
    weights and one block's gradients."""

    parameters: int
    gradients: int
    optimizer: int
    moving_average: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


def training_memory(
    network: DiT,
    *,
    ranks: int,
    sharded: bool,
    bf16: bool,
    ema: bool,
    images: int,
    mask_ratio: float,
    caption_length: int,
) -> DeviceMemory:
    """The memory of one of `ranks` devices that compute micro-batches of `images`, with AdamW.

    Weights, gradients and both moments are float32; `bf16` computes in bfloat16. With `sharded` (FSDP) a device keeps
    its part of each weight, whose first side is divided and rounded up. What libraries take for themselves, and what
    lies unused between tensors, is not counted.
    """
    parts = ranks if sharded else 1
    kept = FLOAT32 * sum(part_size(parameter, parts) for parameter in network.parameters())
    blocks = [module for module in network.modules() if isinstance(module, DiTBlock | CaptionBlock)]
    largest = max(sum(parameter.numel() for parameter in block.parameters()) for block in blocks)
    weight = BFLOAT16 if bf16 else FLOAT32
    return DeviceMemory(
        parameters=kept,
        gradients=kept,
        optimizer=2 * kept,
        moving_average=kept if ema else 0,
        activations=activation_bytes(network, images, mask_ratio, caption_length, bf16, weights_are_cast=not sharded),
        working=(2 * largest * weight + largest * FLOAT32) if sharded else 0,
    )


def part_size(parameter: nn.Parameter, parts: int) -> int:
    """Numbers of a weight that the first of `parts` devices keeps."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return -(-rows // parts) * (parameter.numel() // rows)


def activation_bytes(
    network: DiT, images: int, mask_ratio: float, caption_length: int, bf16: bool, weights_are_cast: bool = True
) -> int:
    """What the forward pass of a micro-batch keeps for the backward pass, as autograd does on the real network.

    With `bf16` autocast also keeps a bfloat16 copy of each weight it casts; FSDP's weights have been cast before
    (`weights_are_cast` False), and are given back until they are needed again.
    """
    with FakeTensorMode():
        fake = without_storage(network, torch.bfloat16 if bf16 and not weights_are_cast else torch.float32).train()
        latents = torch.empty(images, fake.in_channels, fake.input_size, fake.input_size)
        captions = torch.empty(images, caption_length, fake.caption_channels)
        rows, columns = fake.trained_grid
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            kept = fake.token_path.keep(torch.empty(images, rows * columns), mask_ratio, fake.trained_grid)
            given = [latents, captions, *fake.parameters(), *fake.buffers()]
            return saved_bytes(lambda: fake(latents, torch.ones(images), captions, kept), given)


def without_storage(network: DiT, dtype: torch.dtype) -> DiT:
    """A copy whose weights, of this type, and buffers hold no numbers; to be called under FakeTensorMode."""
    memo: dict[int, Any] = {id(p): nn.Parameter(torch.empty(p.shape, dtype=dtype)) for p in network.parameters()}
    memo |= {id(buffer): torch.empty(buffer.shape) for buffer in network.buffers()}
    copied = copy.deepcopy(network, memo)
    use_operations(copied, FORMULAS)  # what is compiled is compiled for numbers that are there
    return copied


def saved_bytes(forward: Callable[[], Any], given: list[Tensor]) -> int:
    """Bytes that autograd saves in a forward pass, beside the tensors that are `given`; each storage counts once."""
    known = {storage_key(tensor) for tensor in given}
    saved: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no storage's key is used again

    def pack(tensor: Tensor) -> Tensor:
        if storage_key(tensor) not in known:
            saved[storage_key(tensor)] = tensor.untyped_storage().nbytes()
            alive.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(saved.values())


def storage_key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
