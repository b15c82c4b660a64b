"""Feed-forward layers: gated and plain ones, and the mixture of experts in which the experts choose their patches."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.operations import FORMULAS


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
        return self.w3(self.operations.silu_product(self.w1(x), self.w2(x)))


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
    the experts' loads are equal by construction (Zhou et al. 2022, expert-choice routing). On a CPU the output is the
    same to the last bit each time; on a GPU sums have no fixed order, unless torch.use_deterministic_algorithms asks.
    """

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
        gathered = x.flatten(0, 1).index_select(0, rows).view(experts, n * k, d)
        outputs = torch.bmm(F.gelu(torch.bmm(gathered, self.w1)), self.w2)
        weighted = outputs.view(-1, d) * chosen.transpose(0, 1).reshape(-1, 1).to(outputs.dtype)
        return weighted.new_zeros(n * t, d).index_add(0, rows, weighted).view(n, t, d)
