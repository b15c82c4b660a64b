"""Muon: updates of weight matrices that turn all directions alike (Jordan et al. 2024), AdamW for everything else."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.attention import CrossAttention, SelfAttention
from microdit.model.dit import DiT
from microdit.model.layers import GELUFeedForward, SwiGLU
from microdit.model.mixture_of_experts import ExpertChoice
from microdit.training.sharding import part_like, whole_tensor

# a s + b s^3 + c s^5 brings singular values s in (0, 1] quickly near 1, then keeps them in about 0.7 to 1.2 (Jordan et
# al. 2024). Their five iterations serve matrices of thousands of rows; three reach whatever is above a twentieth.
A, B, C = 3.4445, -4.7750, 2.0315
ITERATIONS = 3


def orthogonalised(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
    """Nearly U V^T of a matrix U S V^T, by products alone: same directions, singular values near 1."""
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if is_tall else matrix
    # Singular values are at most the Frobenius norm; a little more than it, so that rounding never leaves [0, 1].
    x = x / (1.01 * torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x.mT if is_tall else x


class MuonWithAdamW(torch.optim.AdamW):
    """AdamW for `others`, Muon for `matrices` (also stacks of matrices [experts, m, n], each by itself).

    torch.optim.Muon takes single matrices only, and a LightningModule takes one optimizer only; hence this one.
    `matrix_learning_rate` is the length of a step in spectral norm for a square matrix. A part of a matrix cannot be
    orthogonalised: of sharded weights every rank gathers one whole direction after the other, and takes its part.
    """

    def __init__(
        self,
        others: Iterable[nn.Parameter],
        matrices: Iterable[nn.Parameter],
        *,
        lr: float,
        matrix_learning_rate: float,
        matrix_momentum: float,
        **adamw: Any,
    ):
        super().__init__([{"params": list(others), "momentum": None}], lr=lr, **adamw)
        self.add_param_group({"params": list(matrices), "momentum": matrix_momentum, "lr": matrix_learning_rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. Matrices lose their gradients in it, so that what remains is AdamW's."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["momentum"] is None:
                continue
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self.step_matrix(matrix, group["lr"], group["momentum"], group["weight_decay"])
                    matrix.grad = None
        super().step()
        return loss

    def step_matrix(self, matrix: nn.Parameter, learning_rate: float, momentum: float, weight_decay: float) -> None:
        assert matrix.grad is not None
        state = self.state[matrix]
        if not state:
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
            state["momentum"] = torch.zeros_like(matrix)
        state["step"] += 1
        state["momentum"].lerp_(matrix.grad, 1 - momentum)
        ahead = matrix.grad.lerp(state["momentum"], momentum)  # Nesterov's
        direction = part_like(matrix, orthogonalised(whole_tensor(ahead)))
        # A step that changes outputs of any width by as much, entry by entry. Experts multiply from the right.
        outputs, inputs = matrix.shape[-2:] if matrix.ndim == 2 else matrix.shape[:-3:-1]
        matrix.mul_(1 - learning_rate * weight_decay)
        matrix.add_(direction, alpha=-learning_rate * max(1.0, outputs / inputs) ** 0.5)


def weight_matrices(network: DiT) -> list[nn.Parameter]:
    """The weights Muon is for: attention and feed-forward matrices of all blocks, each expert's included.

    Not embeddings, modulation, experts' gates and the output layer, whose rows mean something one by one.
    """
    return [
        parameter
        for module in network.modules()
        if isinstance(module, SelfAttention | CrossAttention | SwiGLU | GELUFeedForward | ExpertChoice)
        for name, parameter in module.named_parameters()
        if parameter.ndim >= 2 and not name.startswith("gate")
    ]
