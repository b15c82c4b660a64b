"""What holds for every objective: one denoiser behind all of them, and a loss that the best one minimises."""

import pytest
import torch
from small_losses import SIGMA_DATA, constant, draws, sigmas

from microdit.masking.naive import Naive
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Objective, denoise, training_loss
from microdit.objectives.rectified_flow import RectifiedFlow
from microdit.objectives.x_prediction import XPrediction

OBJECTIVES = [EDM(SIGMA_DATA), RectifiedFlow(SIGMA_DATA, 0.3, 0.8, 2.0), XPrediction(SIGMA_DATA, 0.3, 0.8)]
CAPTIONS = torch.zeros(1, 5, 16)
each_objective = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: type(objective).__name__)


def sigma_of_label(objective: Objective, label: torch.Tensor) -> torch.Tensor:
    """The noise level behind a network's noise label: a quarter of its logarithm, or t."""
    return (4 * label).exp() if isinstance(objective, EDM) else label / (1 - label)


def best_network(objective: Objective):
    """The raw network whose D is the posterior mean of latents from N(0, SIGMA_DATA^2), worked out from its inputs."""

    def network(scaled, noise_label, captions, kept=None):
        sigma = sigma_of_label(objective, noise_label.double())[:, None, None, None]
        x = scaled.double() / objective.c_in(sigma)
        mean = SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2) * x
        return ((mean - objective.c_skip(sigma) * x) / objective.c_out(sigma)).float()

    return network


def loss(network, objective, latents, chance):
    given = {"token_path": Naive(), "objective": objective, "mask_ratio": 0.0, "patch_size": 2}
    return training_loss(network, latents, CAPTIONS.expand(len(latents), -1, -1), chance, **given)


@each_objective
def test_the_best_denoiser_is_the_same_through_every_objective(objective):
    sigma = sigmas(0.01, 0.1, 1.0, 10.0, 80.0)
    x = (SIGMA_DATA**2 + sigma**2).sqrt() * torch.randn(5, 3, 4, 4)
    denoised = denoise(best_network(objective), x, sigma, CAPTIONS.expand(5, -1, -1), objective)
    torch.testing.assert_close(denoised, SIGMA_DATA**2 / (SIGMA_DATA**2 + sigma**2) * x, atol=1e-4, rtol=1e-4)


@each_objective
@pytest.mark.parametrize("level", [-1.5, 0.0, 1.5])
def test_the_best_denoiser_leaves_the_error_that_noise_leaves_and_no_other_has_less(objective, level):
    latents = SIGMA_DATA * torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    chance = draws(256)._replace(noise_level=torch.full((256, 1, 1, 1), level))
    best = best_network(objective)
    sigma = objective.draw(torch.full((1, 1, 1, 1), level))
    left = objective.weight(sigma) * sigma**2 * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    found = loss(best, objective, latents, chance).loss.item()
    assert found == pytest.approx(left.item(), rel=0.02)
    for factor in (-0.2, 0.2):
        another = loss(lambda x, *rest, by=factor: best(x, *rest) + by * x, objective, latents, chance)
        assert another.loss.item() > found


@each_objective
def test_drawn_noise_levels_lead_back_to_how_far_they_are_from_the_middle(objective):
    standard = torch.linspace(-2, 2, 5)
    levels = objective.draw(standard.view(-1, 1, 1, 1)).flatten()
    torch.testing.assert_close(objective.standard_level(levels), standard, atol=1e-5, rtol=1e-5)


def test_the_loss_of_the_flow_is_the_error_of_the_velocity():
    latents, chance = torch.randn(4, 3, 8, 8), draws(4)
    seen = []

    def network(x, noise_label, captions, kept=None):
        seen.append((x, noise_label))
        return 0.3 * x + 0.1

    terms = loss(network, RectifiedFlow(SIGMA_DATA, 0.0, 1.0), latents, chance)
    t = torch.sigmoid(chance.noise_level)  # logit-normal
    along = (1 - t) * latents + t * chance.noise
    torch.testing.assert_close(seen[0][0], along)
    torch.testing.assert_close(seen[0][1], t.flatten())
    error = (0.3 * along + 0.1 - (chance.noise - latents)) ** 2
    torch.testing.assert_close(terms.per_sample, error.mean(dim=(1, 2, 3)), atol=1e-4, rtol=1e-4)


def test_a_time_shift_moves_times_as_stable_diffusion_3_does():
    z = torch.randn(6, 1, 1, 1)
    t, shift = torch.sigmoid(z), 3.0
    flow = RectifiedFlow(SIGMA_DATA, 0.0, 1.0, shift)
    torch.testing.assert_close(flow.time(flow.draw(z)), shift * t / (1 + (shift - 1) * t))


def test_the_network_of_x_prediction_says_the_latents_themselves_and_its_weight_has_a_bound():
    objective = XPrediction(SIGMA_DATA, least_time=0.1)
    x = torch.randn(2, 3, 4, 4)
    denoised = denoise(constant(0.4), x, sigmas(0.5, 20.0), CAPTIONS.expand(2, -1, -1), objective)
    assert torch.equal(denoised, torch.full_like(x, 0.4))
    flow = RectifiedFlow(SIGMA_DATA)
    assert objective.weight(sigmas(1e-4)).item() == pytest.approx(100)
    torch.testing.assert_close(objective.weight(sigmas(1.0)), flow.weight(sigmas(1.0)))
