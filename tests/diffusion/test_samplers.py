"""Heun's sampler on problems whose solution is known."""

import itertools
import math

import pytest
import torch

from microdit.diffusion.samplers import heun, heun_step, noise_schedule


@pytest.mark.parametrize("steps", [2, 10, 30])
def test_the_schedule_falls_from_the_largest_noise_to_the_smallest_and_then_zero(steps):
    levels = noise_schedule(steps)
    assert len(levels) == steps + 1
    assert levels[0] == pytest.approx(80.0)
    assert levels[-2] == pytest.approx(0.002)
    assert levels[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(levels))


def test_the_schedule_is_even_in_the_seventh_root():
    roots = [level ** (1 / 7) for level in noise_schedule(9)[:-1]]
    gaps = [a - b for a, b in itertools.pairwise(roots)]
    assert gaps == pytest.approx([gaps[0]] * 8)


def test_a_schedule_of_one_step_is_refused():
    with pytest.raises(ValueError, match="at least 2 steps"):
        noise_schedule(1)


@pytest.mark.parametrize("steps", [2, 7, 30])
def test_n_steps_cost_two_n_minus_one_evaluations_at_the_schedules_levels(steps):
    seen = []

    def denoiser(x, sigma):
        seen.append(sigma)
        return torch.zeros_like(x)

    levels = noise_schedule(steps)
    assert len(list(heun(denoiser, torch.randn(1, 3, 2, 2), levels))) == steps
    assert len(seen) == 2 * steps - 1
    assert sorted(set(seen), reverse=True) == levels[:-1]


def test_a_slope_that_is_linear_in_the_noise_level_is_followed_exactly():
    def denoiser(x, sigma):  # dx/dsigma = (x - D) / sigma = 3 - 2 sigma
        return x - sigma * (3 - 2 * sigma)

    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    stepped = heun_step(denoiser, x, 5.0, 1.0)
    torch.testing.assert_close(stepped, x + 3 * (1.0 - 5.0) - (1.0**2 - 5.0**2), atol=1e-12, rtol=0)


def test_a_single_picture_is_reached_from_any_noise():
    picture = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    *_, result = heun(lambda x, sigma: picture, torch.randn(1, 3, 2, 2), noise_schedule(5))
    torch.testing.assert_close(result, picture, atol=1e-10, rtol=0)


def test_the_last_step_is_eulers_and_lands_on_what_is_denoised():
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    assert torch.allclose(heun_step(lambda x, sigma: 0.3 * x, x, 0.5, 0.0), 0.3 * x)


def test_errors_fall_with_the_square_of_the_steps_on_gaussian_data():
    """Data of deviation s: D = s^2 / (s^2 + sigma^2) x, and x(sigma) is proportional to sqrt(s^2 + sigma^2)."""
    s, noise = 0.5, torch.ones(1, 3, 2, 2)

    def denoiser(x, sigma):
        return s**2 / (s**2 + sigma**2) * x

    exact = 80.0 * s / math.sqrt(s**2 + 80.0**2)

    def error(steps: int) -> float:
        *_, result = heun(denoiser, noise, noise_schedule(steps))
        return (result - exact).abs().max().item()

    assert [error(n) / error(2 * n) for n in (40, 80)] == pytest.approx([4.0, 4.0], rel=0.1)
    assert error(160) < 1e-3 * exact


def test_the_state_is_kept_in_double_precision():
    dtypes = {x.dtype for x in heun(lambda x, sigma: 0 * x, torch.randn(1, 3, 2, 2), noise_schedule(3))}
    assert dtypes == {torch.float64}
