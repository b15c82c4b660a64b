"""FSDP2: every rank keeps a part of each weight, and the ranks lend each other a block at a time."""

import copy
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from microdit.model.blocks import CaptionBlock, DiTBlock
from microdit.model.dit import DiT


def shard(network: nn.Module, mesh: DeviceMesh, bf16: bool, reshard_after_forward: bool = True) -> None:
    """Shards every block of patch-mixer, backbone and captions (experts and norms included), then what is left, in
    place. On a mesh of two dimensions (HSDP) the parts are those of the second, and the first has copies of them.
    Without `reshard_after_forward` blocks stay whole until their backward pass, or `in_parts_again`.

    With `bf16` weights travel in bfloat16 and are kept in float32; gradients are summed in float32. Autocast decides
    what is computed in bfloat16, as it does without sharding; norms are computed in float32, from rounded weights.
    """
    # The output of the network is a view of another tensor, and nothing writes into it.
    warnings.filterwarnings("ignore", message=".*FSDP2-wrapped module .* returned a view tensor.*")
    halved = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = halved if bf16 else MixedPrecisionPolicy(cast_forward_inputs=False)
    for module in list(network.modules()):
        if isinstance(module, DiTBlock | CaptionBlock):
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    # Back to parts also after the root's forward: checkpoints and the moving average read the parts.
    fully_shard(network, mesh=mesh, mp_policy=policy, reshard_after_forward=True)


def in_parts_again(network: nn.Module) -> None:
    """Gives back what a forward pass without a backward pass has gathered: the optimizer changes the parts."""
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(network: nn.Module) -> bool:
    return isinstance(network, FSDPModule)


def summed(tensor: Tensor) -> Tensor:
    """The sum over all ranks, on each of them."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(tensor)
    return tensor


def local_part(tensor: Tensor) -> Tensor:
    """What this rank keeps of a sharded tensor; the tensor itself if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """All parts of a sharded tensor together, on every rank; the tensor itself if it is whole."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def gathered(network: DiT, skeleton: DiT, device: torch.device) -> DiT:
    """A whole copy of a sharded network on every rank's device, from its structure on the meta device.

    All ranks must call it together.
    """
    whole = copy.deepcopy(skeleton).to_empty(device=device)
    for name, parameter in network.named_parameters():
        whole.get_parameter(name).copy_(whole_tensor(parameter.detach()))
    for name, buffer in network.named_buffers():  # also those that no state dict has
        whole.get_buffer(name).copy_(buffer)
    return whole


def part_like(target: Tensor, whole: Tensor) -> Tensor:
    """A whole tensor, which every rank has, cut among them as `target` is; the tensor itself if `target` is whole."""
    if not isinstance(target, DTensor):
        return whole
    return distribute_tensor(whole, target.device_mesh, target.placements, src_data_rank=None)


def fill(target: Tensor, whole: Tensor) -> None:
    """Copies a whole tensor, which every rank has, into what this rank keeps of it."""
    with torch.no_grad():
        local_part(target).copy_(local_part(part_like(target, whole.to(target.device, target.dtype))))


def optimizer_state(parameter: Tensor, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an optimizer keeps for a parameter, of which each rank has its part, from saved whole tensors."""
    state = {}
    for name, tensor in saved.items():
        alike = parameter.detach() if tensor.shape == parameter.shape else tensor.to(parameter.device)
        state[name] = torch.zeros_like(alike, dtype=tensor.dtype)
        fill(state[name], tensor)
    return state
