"""From noise to latents: noise schedules and samplers over any denoiser D(x, sigma)."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.sampling.guidance import Denoiser

MOST_STEPS = 10_000


def noise_schedule(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> list[float]:
    """`steps` falling noise levels and a final 0 (EDM eq. 5)."""
    if not 2 <= steps <= MOST_STEPS:
        raise ValueError(f"a sampler makes 2 to {MOST_STEPS} steps between its two noise levels, got {steps}")
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


def dpm_solver_2m(
    denoise: Denoiser, noise: Float[Tensor, "n c h w"], sigmas: list[float]
) -> Iterator[Float[Tensor, "n c h w"]]:
    """DPM-Solver++(2M): second order from the last two denoised pictures, so n steps cost n evaluations.

    Lu et al. 2022, algorithm 2 with alpha = 1 and lambda = -ln(sigma). The first step has no past, and the step to
    noise level 0 needs none: it lands on what is denoised. State in float64.
    """
    x = noise.double() * sigmas[0]
    past, past_step = None, math.nan  # the denoised picture before, and the step in lambda that came after it
    for sigma, sigma_next in itertools.pairwise(sigmas):
        denoised = denoise(x, sigma)
        if sigma_next == 0:
            yield denoised
            return
        step = math.log(sigma / sigma_next)
        # Where a straight line through both pictures is half a step ahead.
        ahead = denoised if past is None else denoised + step / (2 * past_step) * (denoised - past)
        x = sigma_next / sigma * x + (1 - sigma_next / sigma) * ahead
        past, past_step = denoised, step
        yield x


class Sampler(NamedTuple):
    """`states` yields the state after each step; `evaluations` is how often n steps call the denoiser."""

    states: Callable[[Denoiser, Float[Tensor, "n c h w"], list[float]], Iterator[Float[Tensor, "n c h w"]]]
    evaluations: Callable[[int], int]


SAMPLERS = {
    "heun": Sampler(heun, evaluations=lambda steps: 2 * steps - 1),
    "dpm_solver_2m": Sampler(dpm_solver_2m, evaluations=lambda steps: steps),
}
