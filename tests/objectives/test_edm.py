"""EDM's preconditioning, loss and guidance against their formulas."""

import math

import pytest
import torch

from microdit.masking.naive import Naive
from microdit.masking.patches import keep_patches
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws, denoise, patch_means, training_loss
from microdit.sampling.guidance import guided, guided_denoiser

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


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5, 0.75])
def test_the_loss_is_averaged_over_a_patch_then_kept_patches_then_the_batch(mask_ratio):
    latents, chance = torch.randn(2, 3, 8, 8), draws(2)
    terms = loss_terms(constant(0.3), latents, chance, mask_ratio)
    kept = keep_patches(chance.mask, mask_ratio)
    samples = []
    for i in range(2):
        sigma = math.exp(-0.6 + 1.2 * chance.noise_level[i].item())
        total = sigma**2 + SIGMA_DATA**2
        noisy = latents[i] + sigma * chance.noise[i]
        denoised = SIGMA_DATA**2 / total * noisy + sigma * SIGMA_DATA / math.sqrt(total) * 0.3
        error = total / (sigma * SIGMA_DATA) ** 2 * (denoised - latents[i]) ** 2
        patches = range(16) if kept is None else kept.indices[i].tolist()
        means = [error[:, 2 * (p // 4) : 2 * (p // 4) + 2, 2 * (p % 4) : 2 * (p % 4) + 2].mean() for p in patches]
        assert len(means) == int(16 * (1 - mask_ratio))
        samples.append(torch.stack(means).mean())
    torch.testing.assert_close(terms.per_sample, torch.stack(samples))
    torch.testing.assert_close(terms.loss, torch.stack(samples).mean())


def test_the_parts_of_the_loss_that_are_only_looked_at_carry_no_gradient():
    scale = torch.ones(1, requires_grad=True)
    terms = loss_terms(lambda x, noise_label, captions: scale * x, torch.randn(2, 3, 8, 8), draws(2))
    assert terms.loss.requires_grad
    assert not terms.per_sample.requires_grad


def test_at_ratio_zero_the_network_is_not_told_of_a_mask():
    def network(x, noise_label, captions):  # would not take a fourth argument
        return x

    assert loss_terms(network, torch.randn(2, 3, 8, 8), draws(2)).loss.isfinite()


def test_a_ratio_outside_zero_to_one_is_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\); got 1"):
        loss_terms(constant(0.0), torch.randn(2, 3, 8, 8), draws(2), mask_ratio=1.0)


def test_patch_means_go_row_by_row():
    picture = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 2, 4, 4)
    assert patch_means(picture, 2).tolist() == [[2.5, 4.5, 10.5, 12.5]]


def test_guidance_of_one_is_the_network_itself():
    network = constant(1.0)
    assert guided(network, 1.0) is network


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0])
def test_guidance_moves_from_the_output_without_a_caption_through_the_one_with(small_network, inputs, scale):
    network = small_network()
    latents, noise_label, captions = inputs()
    with_caption = network(latents, noise_label, captions)
    without = network(latents, noise_label, torch.zeros_like(captions))
    assert not torch.allclose(with_caption, without, atol=1e-3)
    expected = without + scale * (with_caption - without)
    torch.testing.assert_close(guided(network, scale)(latents, noise_label, captions), expected, atol=1e-4, rtol=1e-4)


def test_guidance_takes_one_call():
    calls = []

    def network(x, noise_label, captions):
        calls.append(len(x))
        return x

    guided(network, 3.0)(torch.randn(2, 3, 4, 4), torch.randn(2), torch.randn(2, 5, 16))
    assert calls == [4]


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_guidance_with_captions_that_were_read_gives_the_same(small_network, inputs, scale):
    network = small_network()
    latents, noise_label, captions = inputs()
    expected = guided(network, scale)(latents, noise_label, captions)
    remembered = guided(network, scale)(latents, noise_label, network.read_captions(captions))
    torch.testing.assert_close(remembered, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_guided_denoiser_is_edms_over_the_guided_network(small_network, inputs):
    network = small_network()
    x, _, captions = inputs()
    denoised = guided_denoiser(network, captions, EDM(SIGMA_DATA), guidance_scale=3.0)(x.double(), 0.7)
    expected = denoise(guided(network, 3.0), x, sigmas(0.7, 0.7), captions, EDM(SIGMA_DATA))
    assert denoised.dtype == torch.float64
    torch.testing.assert_close(denoised, expected.double())


@pytest.mark.parametrize(
    ("scale", "interval", "guided_levels"),
    [
        (3.0, None, [50.0, 2.0, 0.5, 0.01]),
        (3.0, [0.5, 2.0], [2.0]),
        (3.0, (0.0, 80.0), [50.0, 2.0, 0.5, 0.01]),
        (1.0, None, []),
    ],
)
def test_only_noise_levels_in_the_interval_are_guided_and_cost_twice(scale, interval, guided_levels):
    samples = []

    def network(x, noise_label, captions):
        samples.append(len(x))
        return x

    denoiser = guided_denoiser(network, torch.randn(2, 5, 16), EDM(SIGMA_DATA), scale, interval)
    for sigma in (50.0, 2.0, 0.5, 0.01):
        samples.clear()
        denoiser(torch.randn(2, 3, 4, 4, dtype=torch.float64), sigma)
        assert samples == [4 if sigma in guided_levels else 2]


@pytest.mark.parametrize("interval", [[2.0, 0.5], [1.0, 1.0], [-1.0, 2.0], [0.5], [], [0.1, 0.2, 0.3]])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match=r"guidance_interval is two noise levels \[low, high\], 0 <= low < high"):
        guided_denoiser(constant(1.0), torch.randn(2, 5, 16), EDM(SIGMA_DATA), 3.0, interval)


@torch.no_grad()
def test_half_precision_of_the_network_does_not_lower_the_precision_of_the_state():
    def network(x, noise_label, captions):
        return x.bfloat16()

    assert (
        denoise(network, torch.randn(1, 3, 4, 4), sigmas(1.0), torch.zeros(1, 5, 16), EDM(0.9)).dtype == torch.float32
    )
