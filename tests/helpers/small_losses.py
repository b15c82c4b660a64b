"""Raw networks, noise levels and chance by hand, for tests of the loss and of guidance."""

import torch

from microdit.masking.naive import Naive
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws, training_loss

SIGMA_DATA = 0.9


def constant(value: float):
    """A raw network that ignores its inputs."""
    return lambda x, noise_label, captions, kept=None: torch.full_like(x, value)


def sigmas(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None, None, None]


def draws(n: int, side: int = 8, seed: int = 0) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    return Draws(
        torch.randn(n, 1, 1, 1, generator=generator),
        torch.randn(n, 3, side, side, generator=generator),
        torch.rand(n, (side // 2) ** 2, generator=generator),
    )


def loss_terms(network, latents, chance, mask_ratio=0.0, mean=-0.6, std=1.2):
    return training_loss(
        network,
        latents,
        torch.zeros(len(latents), 5, 16),
        chance,
        token_path=Naive(),
        objective=EDM(SIGMA_DATA, mean, std),
        mask_ratio=mask_ratio,
        patch_size=2,
    )
