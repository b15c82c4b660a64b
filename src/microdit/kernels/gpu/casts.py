"""Weights that autocast would cast one by one, cast in one launch, and their gradients back in another.

A network has hundreds of weights, each of which is too small to occupy a GPU's memory by itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode


class CastsSeen(TorchDispatchMode):
    """Notes which of some weights are cast to a type while it is entered."""

    def __init__(self, weights: dict[str, nn.Parameter], kind: torch.dtype):
        super().__init__()
        self.names, self.kind = {id(weight): name for name, weight in weights.items()}, kind
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("dtype") == self.kind and id(args[0]) in self.names:
            self.seen.add(self.names[id(args[0])])
        return func(*args, **kwargs)


class CastTogether(torch.autograd.Function):
    """Float32 weights in another type."""

    @staticmethod
    def forward(ctx: Any, kind: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(all_as(weights, kind))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = iter(all_as([gradient for gradient in gradients if gradient is not None], torch.float32))
        return None, *(None if gradient is None else next(found) for gradient in gradients)


def all_as(tensors: Any, kind: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(x, dtype=kind) for x in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


class Differentiation(nn.Module):
    """Calling it computes `loss_of`'s loss and its gradients by the network's weights, and gives what is told beside.

    The first call under autocast sees which weights are cast; from the second on they are cast together. Each weight
    that is cast has to be read under autocast alone.
    """

    def __init__(self, network: nn.Module, loss_of: Callable[[Any, Any], tuple[Tensor, Any]]):
        super().__init__()
        self.network, self.loss_of = network, loss_of
        self.cast: dict[torch.dtype, list[str]] = {}

    def forward(self, batch: Any, case: Any) -> Any:
        """Backward is within, too: blocks that are computed a second time take the same weights."""
        loss, told = self.loss_of(batch, case)
        loss.backward()
        return told

    def run(self, batch: Any, case: Any) -> Any:
        kind = next(self.parameters()).device.type
        if not torch.is_autocast_enabled(kind):
            return self(batch, case)
        dtype, weights = torch.get_autocast_dtype(kind), dict(self.named_parameters())
        if dtype not in self.cast:
            with CastsSeen(weights, dtype) as casts:
                told = self(batch, case)
            self.cast[dtype] = sorted(casts.seen)
            return told
        names = self.cast[dtype]
        copies = CastTogether.apply(dtype, *(weights[name] for name in names))
        return functional_call(self, dict(zip(names, copies, strict=True)), (batch, case))
