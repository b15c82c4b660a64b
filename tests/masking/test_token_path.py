"""What each masking method lets the network see, and where its loss is."""

import pytest
import torch

from microdit.masking.deferred import Deferred
from microdit.masking.naive import Naive
from microdit.masking.none import Unmasked
from microdit.masking.patches import keep_patches
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws, LossTerms, training_loss

PATCHES = 16


@pytest.fixture
def kept():
    return keep_patches(torch.rand(2, PATCHES, generator=torch.Generator().manual_seed(5)), 0.75)


def pixels(mask: torch.Tensor) -> torch.Tensor:
    """A mask over patches of 2 x 2 as one over latents of 8 x 8."""
    return mask.view(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)


def draws_and_mask() -> tuple[Draws, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    uniform = torch.rand(2, PATCHES, generator=generator)
    noise_level = torch.randn(2, 1, 1, 1, generator=generator)
    draws = Draws(noise_level, torch.randn(2, 3, 8, 8, generator=generator), uniform)
    return draws, pixels(keep_patches(uniform, 0.75).mask)


def terms_of(network, latents, captions, draws, mask_ratio=0.75, token_path=None) -> LossTerms:
    objective = EDM(0.9, -0.6, 1.2)
    path = token_path or network.token_path
    ratio = {"mask_ratio": mask_ratio, "patch_size": 2}
    return training_loss(network, latents, captions, draws, token_path=path, objective=objective, **ratio)


def loss_of(*args, **kwargs) -> torch.Tensor:
    return terms_of(*args, **kwargs).loss


@torch.no_grad()
@pytest.mark.parametrize("use_patch_mixer", [True, False])
def test_dropped_patches_hold_zeros_in_the_output_and_kept_ones_do_not(small_network, inputs, kept, use_patch_mixer):
    output = small_network(use_patch_mixer=use_patch_mixer)(*inputs(), kept)
    dropped = pixels(kept.mask).expand_as(output).bool()
    assert (output[dropped] == 0).all()
    assert (output[~dropped] != 0).all()


@torch.no_grad()
def test_naive_never_sees_dropped_patches(small_network, inputs, kept):
    network = small_network(use_patch_mixer=False)
    latents, noise_label, captions = inputs()
    changed = latents + 3 * pixels(kept.mask)
    assert torch.equal(network(latents, noise_label, captions, kept), network(changed, noise_label, captions, kept))


@torch.no_grad()
def test_deferred_sees_dropped_patches_through_the_mixer(small_network, inputs, kept):
    network = small_network(use_patch_mixer=True)
    latents, noise_label, captions = inputs()
    before = network(latents, noise_label, captions, kept)
    after = network(latents + 3 * pixels(kept.mask), noise_label, captions, kept)
    seen = (1 - kept.mask).bool()
    patch_changes = torch.nn.functional.avg_pool2d((before - after).abs().mean(1, keepdim=True), 2).flatten(1)
    assert (patch_changes[seen] > 1e-4).all()


@torch.no_grad()
def test_neither_latents_nor_noise_of_dropped_patches_reach_the_naive_loss(small_network, inputs):
    network = small_network(use_patch_mixer=False)
    latents, _, captions = inputs()
    draws, dropped = draws_and_mask()
    loss = loss_of(network, latents, captions, draws)
    assert torch.equal(loss, loss_of(network, latents + dropped, captions, draws))
    assert torch.equal(loss, loss_of(network, latents, captions, draws._replace(noise=draws.noise + dropped)))
    assert not torch.equal(loss, loss_of(network, latents + (1 - dropped), captions, draws))


@pytest.mark.parametrize("use_patch_mixer", [True, False])
def test_masked_patches_receive_no_gradient(small_network, inputs, use_patch_mixer):
    network = small_network(use_patch_mixer=use_patch_mixer)
    latents, _, captions = inputs()
    draws, dropped = draws_and_mask()
    outputs = []

    def recording(*arguments):
        outputs.append(network(*arguments))
        outputs[0].retain_grad()
        return outputs[0]

    loss_of(recording, latents, captions, draws, token_path=network.token_path).backward()
    gradient, dropped = outputs[0].grad, dropped.expand_as(latents).bool()
    assert (gradient[dropped] == 0).all()
    assert (gradient[~dropped] != 0).all()


def test_every_weight_learns_under_the_papers_masking(small_network, inputs):
    network = small_network(use_patch_mixer=True)
    latents, _, captions = inputs()
    loss_of(network, latents, captions, draws_and_mask()[0], mask_ratio=0.5).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]


@torch.no_grad()
def test_without_masking_naive_is_the_unmasked_network(small_network, inputs):
    latents, _, captions = inputs()
    draws, _ = draws_and_mask()
    naive, unmasked = (small_network(use_patch_mixer=False, token_path=path) for path in (Naive(), Unmasked()))
    losses = [loss_of(network, latents, captions, draws, mask_ratio=0.0) for network in (naive, unmasked)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)


@torch.no_grad()
def test_in_deferred_dropped_patches_change_the_loss_only_through_the_output_on_kept_ones(small_network, inputs):
    network = small_network(use_patch_mixer=True)
    latents, _, captions = inputs()
    draws, dropped = draws_and_mask()
    outputs = []

    def recording(*arguments):
        outputs.append(network(*arguments))
        return outputs[-1]

    before, after = (
        terms_of(recording, x, captions, draws, token_path=network.token_path) for x in (latents, latents + dropped)
    )
    kept = (1 - dropped).expand_as(latents).bool()
    assert ((outputs[0] - outputs[1])[kept].abs() > 1e-5).all()
    assert not torch.equal(before.per_sample, after.per_sample)

    def wrong_where_dropped(*arguments):
        return network(*arguments) + 100 * dropped

    same = terms_of(wrong_where_dropped, latents, captions, draws, token_path=network.token_path)
    assert torch.equal(before.per_sample, same.per_sample)


@torch.no_grad()
@pytest.mark.parametrize("path", [Naive(), Deferred(), Unmasked()], ids=lambda path: type(path).__name__)
def test_paths_without_another_task_learn_nothing_but_denoising(small_network, inputs, path):
    network = small_network(use_patch_mixer=path.uses_patch_mixer, token_path=path)
    latents, _, captions = inputs()
    terms = terms_of(network, latents, captions, draws_and_mask()[0], 0.75 if path.drops_patches else 0.0)
    assert (terms.extra == 0).all()
    assert torch.equal(terms.loss, terms.per_sample.mean())


@pytest.mark.parametrize("path", [Naive(block_size=2), Deferred(block_size=2)], ids=lambda path: type(path).__name__)
def test_a_path_with_blocks_trains_on_whole_blocks(small_network, inputs, path):
    network = small_network(use_patch_mixer=path.uses_patch_mixer, token_path=path)
    latents, _, captions = inputs()
    draws, _ = draws_and_mask()
    kept = path.keep(draws.mask, 0.75, (4, 4))
    outside = pixels(kept.mask)
    outputs = []

    def recording(*arguments):
        outputs.append(network(*arguments))
        return outputs[-1]

    loss_of(recording, latents, captions, draws, token_path=path)
    assert ((outputs[0] == 0) == outside.expand_as(latents).bool()).all()
    assert (torch.nn.functional.max_pool2d(1 - outside, 4).sum(dim=(1, 2, 3)) == 1).all()  # one block of 4 x 4 latents


def test_a_block_size_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1; got 0"):
        Naive(block_size=0)


@torch.no_grad()
def test_unmasked_refuses_a_mask(small_network, inputs, kept):
    network = small_network(use_patch_mixer=False, token_path=Unmasked())
    with pytest.raises(ValueError, match="drops no patches"):
        network(*inputs(), kept)
