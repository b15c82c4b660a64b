"""The optimizer of a run."""

import torch

from microdit.model.dit import DiT
from microdit.training.muon import MuonWithAdamW, weight_matrices
from microdit.training.settings import OptimizerSettings


def make_optimizer(network: DiT, settings: OptimizerSettings, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW for all weights, as in the paper, or Muon for the blocks' matrices and AdamW for the rest."""
    adamw = {
        "lr": learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
        "fused": True,
    }
    if settings.matrix_step is None:
        return torch.optim.AdamW(network.parameters(), **adamw)
    matrices = weight_matrices(network)
    taken = set(map(id, matrices))
    return MuonWithAdamW(
        [parameter for parameter in network.parameters() if id(parameter) not in taken],
        matrices,
        matrix_learning_rate=settings.matrix_step * learning_rate,
        matrix_momentum=settings.matrix_momentum,
        **adamw,
    )
