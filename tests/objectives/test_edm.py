"""EDM's preconditioning, weight and noise levels."""

import math

import pytest
import torch
from small_losses import SIGMA_DATA, constant, draws, loss_terms, sigmas

from microdit.objectives.edm import EDM
from microdit.objectives.objective import denoise


def test_the_network_gets_scaled_input_and_a_quarter_of_the_log_noise_level():
    seen = []

    def network(x, noise_label, captions):
        seen.append((x, noise_label))
        return torch.zeros_like(x)

    x, sigma = torch.randn(2, 3, 4, 4), sigmas(0.5, 20.0)
    denoise(network, x, sigma, torch.zeros(2, 5, 16), EDM(SIGMA_DATA))
    torch.testing.assert_close(seen[0][0], x / (sigma**2 + SIGMA_DATA**2).sqrt())
    torch.testing.assert_close(seen[0][1], torch.tensor([math.log(0.5) / 4, math.log(20.0) / 4]))


def test_denoised_is_skip_plus_scaled_output():
    x, sigma = torch.randn(2, 3, 4, 4), sigmas(0.3, 5.0)
    denoised = denoise(constant(2.0), x, sigma, torch.zeros(2, 5, 16), EDM(SIGMA_DATA))
    total = sigma**2 + SIGMA_DATA**2
    torch.testing.assert_close(denoised, SIGMA_DATA**2 / total * x + 2 * sigma * SIGMA_DATA / total.sqrt())


def test_without_noise_the_input_is_the_answer_whatever_the_network_says():
    x = torch.randn(1, 3, 4, 4)
    denoised = denoise(constant(5.0), x, sigmas(1e-6), torch.zeros(1, 5, 16), EDM(SIGMA_DATA))
    torch.testing.assert_close(denoised, x, atol=1e-5, rtol=0)


def test_in_nothing_but_noise_the_answer_is_the_networks_alone():
    x = torch.randn(1, 3, 4, 4)
    denoised = denoise(constant(0.7), x, sigmas(1e6), torch.zeros(1, 5, 16), EDM(SIGMA_DATA))
    torch.testing.assert_close(denoised, torch.full_like(x, 0.7 * SIGMA_DATA), atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", [-2.0, 0.0, 2.0])
def test_a_fresh_networks_loss_is_one_at_every_noise_level(level):
    """What EDM's weighting is for: with F = 0 the expected loss is 1 wherever the data has deviation sigma_data."""
    chance = draws(64, side=16)._replace(noise_level=torch.full((64, 1, 1, 1), level))
    latents = SIGMA_DATA * torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert loss_terms(constant(0.0), latents, chance).loss.item() == pytest.approx(1.0, abs=0.03)


def test_noise_levels_are_log_normal():
    chance = draws(3)
    terms = loss_terms(constant(0.0), torch.zeros(3, 3, 8, 8), chance, mean=0.4, std=0.6)
    torch.testing.assert_close(terms.sigma, (0.4 + 0.6 * chance.noise_level.flatten()).exp())
