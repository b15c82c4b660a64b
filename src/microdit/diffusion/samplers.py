"""From noise to latents: noise schedules and samplers over any denoiser D(x, sigma)."""

import itertools
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.diffusion.edm import Denoiser


def noise_schedule(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """`steps` falling noise levels and a final 0 (EDM eq. 5)."""
    if steps < 2:
        raise ValueError(f"a sampler needs at least 2 steps between its two noise levels, got {steps}")
    ramp = torch.arange(steps, dtype=torch.float64) / (steps - 1)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]


def heun_step(
    denoise: Denoiser, x: Float[Tensor, "n c h w"], sigma: float, sigma_next: float
) -> Float[Tensor, "n c h w"]:
    """One second-order step from noise level `sigma` to `sigma_next` (EDM, algorithm 2 without churn).

    The step to noise level 0 is plain Euler: there is no slope to evaluate at 0.
    """
    slope = (x - denoise(x, sigma)) / sigma
    euler = x + (sigma_next - sigma) * slope
    if sigma_next == 0:
        return euler
    slope_next = (euler - denoise(euler, sigma_next)) / sigma_next
    return x + (sigma_next - sigma) * (slope + slope_next) / 2


def heun(denoise: Denoiser, noise: Float[Tensor, "n c h w"], sigmas: list[float]) -> Iterator[Float[Tensor, "n c h w"]]:
    """The state after each step, from unit-variance `noise`; n steps cost 2n - 1 evaluations. State in float64."""
    x = noise.double() * sigmas[0]
    for sigma, sigma_next in itertools.pairwise(sigmas):
        x = heun_step(denoise, x, sigma, sigma_next)
        yield x
