"""The optimizer of a run."""

import torch

from microdit.build import SettingsError
from microdit.model.dit import DiT
from microdit.training.muon import MuonWithAdamW, weight_matrices
from microdit.training.settings import OptimizerSettings
from microdit.training.sharding import is_sharded


def make_optimizer(network: DiT, settings: OptimizerSettings, learning_rate: float) -> torch.optim.Optimizer:
    """AdamW for all weights, as in the paper, or Muon for the blocks' matrices and AdamW for the rest.

    Raises SettingsError for Muon on a sharded network.
    """
    adamw = {
        "lr": learning_rate,
        "betas": (settings.beta1, settings.beta2),
        "eps": settings.eps,
        "weight_decay": settings.weight_decay,
        "fused": True,
    }
    if settings.matrix_step is None:
        return torch.optim.AdamW(network.parameters(), **adamw)
    if is_sharded(network):
        raise SettingsError("with FSDP a rank holds parts of matrices, Muon needs whole ones: choose optimizer=adamw")
    matrices = weight_matrices(network)
    taken = set(map(id, matrices))
    return MuonWithAdamW(
        [parameter for parameter in network.parameters() if id(parameter) not in taken],
        matrices,
        matrix_learning_rate=settings.matrix_step * learning_rate,
        matrix_momentum=settings.matrix_momentum,
        **adamw,
    )
