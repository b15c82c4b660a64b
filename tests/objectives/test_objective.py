"""The loss, whatever the objective: where it is, what it is averaged over, what only looks at it."""

import math

import pytest
import torch
from small_losses import SIGMA_DATA, constant, draws, loss_terms, sigmas

from microdit.masking.patches import keep_patches
from microdit.objectives.edm import EDM
from microdit.objectives.objective import denoise, patch_means


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


@torch.no_grad()
def test_half_precision_of_the_network_does_not_lower_the_precision_of_the_state():
    def network(x, noise_label, captions):
        return x.bfloat16()

    assert (
        denoise(network, torch.randn(1, 3, 4, 4), sigmas(1.0), torch.zeros(1, 5, 16), EDM(0.9)).dtype == torch.float32
    )
