"""What training holds in the memory of each device, from counting: nothing is allocated, and no GPU is needed."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from microdit.cost.flops import Layers
from microdit.kernels.gpu.operations import gpu_operations
from microdit.model.blocks import CaptionBlock, DiTBlock
from microdit.model.dit import DiT
from microdit.model.operations import FORMULAS, use_operations

FLOAT32, BFLOAT16 = 4, 2  # bytes


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on the device that holds most. `working` is what FSDP puts together of the others' parts: two blocks'
    weights, or all blocks' where they are kept for the backward pass, and one block's gradients. Gradients come as
    activations go, unless they `add_up` over micro-batches."""

    parameters: int
    gradients: int
    optimizer: int
    moving_average: int
    activations: int
    working: int
    add_up: bool

    @property
    def total(self) -> int:
        passing = self.gradients + self.activations if self.add_up else max(self.gradients, self.activations)
        return self.parameters + self.optimizer + self.moving_average + self.working + passing


def training_memory(
    network: DiT,
    *,
    parts: int,
    bf16: bool,
    ema: bool,
    compiled: bool,
    images: int,
    micro_batches: int,
    mask_ratio: float,
    caption_length: int,
    reshard_after_forward: bool = True,
) -> DeviceMemory:
    """The memory of one of the devices that compute micro-batches of `images`, with AdamW.

    Weights, gradients and both moments are float32; `bf16` computes in bfloat16; `compiled` is for a GPU. Of several
    `parts` (FSDP) a device keeps one of each weight, whose first side is divided and rounded up. What libraries take
    for themselves, and what lies unused between tensors, is not counted.
    """
    sharded = parts > 1
    kept = FLOAT32 * sum(part_size(parameter, parts) for parameter in network.parameters())
    blocks = [module for module in network.modules() if isinstance(module, DiTBlock | CaptionBlock)]
    sizes = [sum(parameter.numel() for parameter in block.parameters()) for block in blocks]
    largest, weight = max(sizes), BFLOAT16 if bf16 else FLOAT32
    whole = 2 * largest if reshard_after_forward else sum(sizes)
    return DeviceMemory(
        parameters=kept,
        gradients=kept,
        optimizer=2 * kept,
        moving_average=kept if ema else 0,
        activations=activation_bytes(
            network, images, mask_ratio, caption_length, bf16, weights_are_cast=not sharded, compiled=compiled
        ),
        working=(whole * weight + largest * FLOAT32) if sharded else 0,
        add_up=micro_batches > 1,
    )


def part_size(parameter: nn.Parameter, parts: int) -> int:
    """Numbers of a weight that the first of `parts` devices keeps."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return -(-rows // parts) * (parameter.numel() // rows)


def activation_bytes(
    network: DiT,
    images: int,
    mask_ratio: float,
    caption_length: int,
    bf16: bool,
    weights_are_cast: bool = True,
    compiled: bool = False,
) -> int:
    """What the forward pass of a micro-batch keeps for the backward pass, as autograd does on the real network.

    With `bf16` autocast also keeps a bfloat16 copy of each weight it casts; FSDP's weights have been cast before
    (`weights_are_cast` False), and are given back until they are needed again. A network that is `compiled` for a GPU
    keeps less than the formulas; one that is not is counted as on a CPU.
    """
    kind = "cuda" if compiled else "cpu"
    with FakeTensorMode(), torch.device(kind):
        fake = without_storage(network, torch.bfloat16 if bf16 and not weights_are_cast else torch.float32).train()
        use_operations(fake, gpu_operations() if compiled else FORMULAS)
        latents = torch.empty(images, fake.in_channels, fake.input_size, fake.input_size)
        captions = torch.empty(images, caption_length, fake.caption_channels)
        rows, columns = fake.trained_grid
        with bfloat16_products(kind, bf16), FusedAttention(compiled and bf16):
            kept = fake.token_path.keep(torch.empty(images, rows * columns), mask_ratio, fake.trained_grid)
            given = [latents, captions, *fake.parameters(), *fake.buffers()]
            return saved_bytes(lambda: fake(latents, torch.ones(images), captions, kept), given)


@contextmanager
def bfloat16_products(kind: str, enabled: bool) -> Iterator[None]:
    """torch.autocast, which would refuse to be that of a GPU where there is none."""
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, enabled)
    torch.set_autocast_dtype(kind, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])


class FusedAttention(TorchFunctionMode):
    """Attention as GPUs compute it in bfloat16. torch asks the GPU, and where there is none it takes the formula."""

    def __init__(self, on_gpus: bool):
        super().__init__()
        self.on_gpus = on_gpus

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.on_gpus and func is F.scaled_dot_product_attention:
            mask = (kwargs or {}).get("attn_mask")
            if mask is None:
                return torch.ops.aten._scaled_dot_product_flash_attention(*args)[0]
            bias = torch.zeros_like(mask, dtype=args[0].dtype).expand(-1, args[0].shape[1], args[0].shape[2], -1)
            return torch.ops.aten._scaled_dot_product_efficient_attention(*args, bias, True)[0]
        return func(*args, **(kwargs or {}))


def without_storage(network: Layers, dtype: torch.dtype) -> Layers:
    """A copy whose weights, of this type, and buffers hold no numbers; to be called under FakeTensorMode."""
    memo: dict[int, Any] = {id(p): nn.Parameter(torch.empty(p.shape, dtype=dtype)) for p in network.parameters()}
    memo |= {id(buffer): torch.empty(buffer.shape) for buffer in network.buffers()}
    return copy.deepcopy(network, memo)


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
