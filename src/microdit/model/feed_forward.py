"""Feed-forward layers: gated and plain ones, and the mixture of experts in which the experts choose their patches."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from microdit.model.operations import FORMULAS, Operations


def round_up(value: int, multiple_of: int) -> int:
    """The smallest multiple of `multiple_of` that is not below `value`."""
    return multiple_of * math.ceil(value / multiple_of)


class SwiGLU(nn.Module):
    """Gated feed-forward layer w3(silu(w1 x) * w2 x); two thirds of dim * ratio keep its cost that of a plain one."""

    operations = FORMULAS

    def __init__(self, dim: int, ratio: float, multiple_of: int, bias: bool):
        super().__init__()
        hidden = round_up(int(2 * int(dim * ratio) / 3), multiple_of)
        self.w1 = nn.Linear(dim, hidden, bias=bias)
        self.w2 = nn.Linear(dim, hidden, bias=bias)
        self.w3 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return self.w3(self.operations.gated_product(x, self.w1, self.w2))


class GELUFeedForward(nn.Module):
    """Plain feed-forward layer w2(gelu(w1 x)): what SwiGLU is compared with, as wide as it costs the same."""

    def __init__(self, dim: int, ratio: float, multiple_of: int, bias: bool):
        super().__init__()
        hidden = round_up(int(dim * ratio), multiple_of)
        self.w1 = nn.Linear(dim, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return self.w2(F.gelu(self.w1(x)))


class ExpertChoice(nn.Module):
    """Feed-forward layer of E experts; in each sample every expert takes the k patches that want it most.

    k = int(capacity * T / E) of the T patches present. A patch chosen by no expert gets zeros, one chosen by several
    the sum of their outputs, each weighted by its probability, which keeps its gradient. There is no balancing loss:
    the experts' loads are equal by construction (Zhou et al. 2022, expert-choice routing). Output and gradients are
    the same to the last bit each time.
    """

    operations = FORMULAS

    def __init__(self, dim: int, ratio: float, multiple_of: int, num_experts: int, capacity: float):
        super().__init__()
        hidden = round_up(int(dim * ratio), multiple_of)
        self.capacity = capacity
        self.gate = nn.Linear(dim, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.w2 = nn.Parameter(torch.empty(num_experts, hidden, dim))

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        n, t, d = x.shape
        experts = self.w1.shape[0]
        k = min(t, int(self.capacity * t / experts))
        probabilities = self.gate(x).softmax(dim=-1)
        chosen, patches = probabilities.transpose(1, 2).topk(k, dim=-1)  # [n, experts, k] both
        # Rows of the flattened batch, expert by expert: gathering them is data movement, while the one-hot products
        # of the formula would cost as much as the experts themselves.
        rows = (patches + t * torch.arange(n, device=x.device)[:, None, None]).transpose(0, 1).flatten()
        if x.is_cuda:
            slots = places_among_chosen(patches, t)
            gathered = GatherPatches.apply(x, rows, slots, self.operations)
            outputs = self.experts(gathered.view(experts, n * k, d)).view(experts, n, k, d)
            return SumOverExperts.apply(outputs, chosen, rows, slots, self.operations)
        outputs = self.experts(x.flatten(0, 1).index_select(0, rows).view(experts, n * k, d))
        weighted = outputs.view(-1, d) * chosen.transpose(0, 1).reshape(-1, 1).to(outputs.dtype)
        return weighted.new_zeros(n * t, d).index_add(0, rows, weighted).view(n, t, d)

    def experts(self, gathered: Float[Tensor, "e nk d"]) -> Float[Tensor, "e nk d"]:
        """Each expert's layers on its own patches."""
        return torch.bmm(F.gelu(torch.bmm(gathered, self.w1)), self.w2)


def places_among_chosen(patches: Int[Tensor, "n e k"], count: int) -> Int[Tensor, "n e t"]:
    """Where each of `count` patches stands among the k that an expert chose; k where it is not among them."""
    n, experts, k = patches.shape
    places = torch.arange(k, device=patches.device).expand_as(patches)
    return patches.new_full((n, experts, count), k).scatter(2, patches, places)


# On a GPU index_add adds in no fixed order. These two, each the other's derivative, only read, always in one order.
class GatherPatches(torch.autograd.Function):
    """The patches that the experts chose, expert by expert."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, slots: Tensor, operations: Operations) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.operations = operations
        return x.flatten(0, 1).index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (slots,) = ctx.saved_tensors
        n, experts, _ = slots.shape
        gradient = gradients[0].view(experts, n, -1, gradients[0].shape[-1])
        return ctx.operations.sum_over_experts(gradient, None, slots), None, None, None


class SumOverExperts(torch.autograd.Function):
    """What the experts made of the patches, weighted and summed patch by patch."""

    @staticmethod
    def forward(
        ctx: Any, outputs: Tensor, weights: Tensor, rows: Tensor, slots: Tensor, operations: Operations
    ) -> Tensor:
        ctx.save_for_backward(outputs, weights, rows)
        ctx.operations = operations
        return operations.sum_over_experts(outputs, weights, slots)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        of_outputs, of_weights = ctx.operations.sum_over_experts_backward(gradients[0], *ctx.saved_tensors)
        return of_outputs, of_weights, None, None, None
