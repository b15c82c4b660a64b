"""The samplers on problems whose solution is known."""

import itertools
import math

import pytest
import torch

from microdit.sampling.samplers import SAMPLERS, dpm_solver_2m, heun_step, noise_schedule


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
    with pytest.raises(ValueError, match="2 to 10000 steps"):
        noise_schedule(1)


@pytest.mark.parametrize("steps", [2, 7, 30])
@pytest.mark.parametrize(("name", "count"), [("heun", lambda n: 2 * n - 1), ("dpm_solver_2m", lambda n: n)])
def test_evaluations_are_as_many_as_promised_and_at_the_schedules_levels(name, count, steps):
    seen = []

    def denoiser(x, sigma):
        seen.append(sigma)
        return torch.zeros_like(x)

    levels = noise_schedule(steps)
    sampler = SAMPLERS[name]
    assert len(list(sampler.states(denoiser, torch.randn(1, 3, 2, 2), levels))) == steps
    assert len(seen) == sampler.evaluations(steps) == count(steps)
    assert sorted(set(seen), reverse=True) == levels[:-1]


def test_a_slope_that_is_linear_in_the_noise_level_is_followed_exactly():
    def denoiser(x, sigma):  # dx/dsigma = (x - D) / sigma = 3 - 2 sigma
        return x - sigma * (3 - 2 * sigma)

    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    stepped = heun_step(denoiser, x, 5.0, 1.0)
    torch.testing.assert_close(stepped, x + 3 * (1.0 - 5.0) - (1.0**2 - 5.0**2), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_picture_is_reached_from_any_noise(name):
    picture = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    *_, result = SAMPLERS[name].states(lambda x, sigma: picture, torch.randn(1, 3, 2, 2), noise_schedule(5))
    torch.testing.assert_close(result, picture, atol=1e-10, rtol=0)


def test_the_last_step_is_eulers_and_lands_on_what_is_denoised():
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64)
    assert torch.allclose(heun_step(lambda x, sigma: 0.3 * x, x, 0.5, 0.0), 0.3 * x)


def gaussian(deviation: float):
    """The denoiser of Gaussian data: x(sigma) is proportional to sqrt(deviation^2 + sigma^2)."""
    return lambda x, sigma: deviation**2 / (deviation**2 + sigma**2) * x


@pytest.mark.parametrize("name", SAMPLERS)
def test_errors_fall_with_the_square_of_the_steps_on_gaussian_data(name):
    # At the last noise level above 0: the step from there to 0 is the same however many steps there were.
    exact = 80.0 * math.hypot(0.5, 0.002) / math.hypot(0.5, 80.0)

    def error(steps: int) -> float:
        *_, before_zero, _ = SAMPLERS[name].states(gaussian(0.5), torch.ones(1, 3, 2, 2), noise_schedule(steps))
        return (before_zero - exact).abs().max().item()

    assert [error(n) / error(2 * n) for n in (40, 80)] == pytest.approx([4.0, 4.0], rel=0.1)
    assert error(160) < 1e-3 * exact


def test_the_past_of_dpm_solver_makes_it_better_than_eulers_steps():
    levels = noise_schedule(40)
    exact = 80.0 * 0.5 / math.hypot(0.5, 80.0)
    euler = torch.full((1, 3, 2, 2), 80.0, dtype=torch.float64)
    for sigma, sigma_next in itertools.pairwise(levels):
        euler = euler + (sigma_next - sigma) * (euler - gaussian(0.5)(euler, sigma)) / sigma
    *_, result = dpm_solver_2m(gaussian(0.5), torch.ones(1, 3, 2, 2), levels)
    assert (result - exact).abs().max() < 0.2 * (euler - exact).abs().max()


def test_dpm_solver_follows_its_equation():
    """Lu et al. 2022, algorithm 2, written down for four noise levels; `r` is the ratio of steps in -ln(sigma)."""
    levels, noise = [8.0, 3.0, 2.0, 0.5, 0.0], torch.randn(1, 3, 2, 2, dtype=torch.float64)

    def denoiser(x, sigma):
        return torch.tanh(x / sigma)

    x0 = 8.0 * noise
    d0 = denoiser(x0, 8.0)
    x1 = 3 / 8 * x0 - (3 / 8 - 1) * d0
    d1, r = denoiser(x1, 3.0), math.log(8 / 3) / math.log(3 / 2)
    x2 = 2 / 3 * x1 - (2 / 3 - 1) * ((1 + 1 / (2 * r)) * d1 - 1 / (2 * r) * d0)
    d2, r = denoiser(x2, 2.0), math.log(3 / 2) / math.log(4)
    x3 = 1 / 4 * x2 - (1 / 4 - 1) * ((1 + 1 / (2 * r)) * d2 - 1 / (2 * r) * d1)
    expected = [x1, x2, x3, denoiser(x3, 0.5)]
    for state, by_hand in zip(dpm_solver_2m(denoiser, noise, levels), expected, strict=True):
        torch.testing.assert_close(state, by_hand, atol=1e-12, rtol=0)


def test_with_many_steps_both_samplers_arrive_at_the_same_picture():
    """Data of two pictures, 0.8 and -0.8: the noise decides which, and the way there is far from straight."""
    noise = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = noise_schedule(300)
    ends = []
    for name in SAMPLERS:
        states = SAMPLERS[name].states(lambda x, sigma: 0.8 * torch.tanh(0.8 * x / sigma**2), noise, levels)
        ends.append(list(states)[200])  # at noise level 0.46, where some values have decided and others have not
    assert ends[0].abs().min() < 0.1 < 0.7 < ends[0].abs().max()
    torch.testing.assert_close(ends[0], ends[1], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_state_is_kept_in_double_precision(name):
    states = SAMPLERS[name].states(lambda x, sigma: 0 * x, torch.randn(1, 3, 2, 2), noise_schedule(3))
    assert {x.dtype for x in states} == {torch.float64}
