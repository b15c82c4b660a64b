"""REPA and iREPA: which tokens are compared with which features, the loss, its gradients, and its cost."""

import math

import pytest
import torch
from denoising import loss_terms
from small_features import BrightPlaces
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from microdit.cost.memory import without_storage
from microdit.kinds import SettingsError
from microdit.masking.patches import KeptPatches, keep_patches
from microdit.masking.ratio import ConstantMaskRatio
from microdit.masking.sprint import Sprint
from microdit.masking.tread import Tread
from microdit.objectives.objective import Draws
from microdit.representation.alignment import (
    Seen,
    alignment_costs,
    alignment_flops_per_image,
    features_of,
    make_alignment,
)
from microdit.representation.irepa import IRepa
from microdit.representation.repa import Repa

SHAPES = {"_target_": "microdit.representation.features.ShapesPatchFeatures"}
REPA = {"_target_": "microdit.representation.repa.Repa", "features": SHAPES, "weight": 0.5, "block_share": 0.25}
REPA |= {"until": 1.0, "hidden_ratio": 0.75}


def repa(weight=0.5, block_share=0.5, until=1.0, dim=32) -> Repa:
    torch.manual_seed(3)
    alignment = Repa(BrightPlaces(), weight, block_share, until, hidden_ratio=0.25)
    alignment.make_layers(dim)
    return alignment


def irepa(weight=0.5, mean_share=1.0, dim=32) -> IRepa:
    torch.manual_seed(3)
    alignment = IRepa(BrightPlaces(), weight, 0.5, 1.0, mean_share)
    alignment.make_layers(dim)
    return alignment


def seen_of(tokens, kept=None, grid=(2, 2)) -> Seen:
    """What a call of a network would have left."""
    seen = Seen.__new__(Seen)
    seen.tokens, seen.kept, seen.grid = tokens, kept, grid
    return seen


class Unprojected(Repa):
    """REPA whose tokens are compared as they are."""

    def make_layers(self, dim):
        self.nothing = torch.nn.Identity()

    def project(self, tokens, kept, grid):
        return tokens


def test_repas_loss_is_minus_the_mean_cosine_of_each_sample():
    alignment = Unprojected(BrightPlaces(), 0.5, 0.5, 1.0, hidden_ratio=0.25)
    # Cosines by hand: equal, at a right angle, opposite, at 45 degrees.
    features = torch.tensor([[1.0, 0], [0, 2], [3, 0], [1, 1]]).T.reshape(1, 2, 2, 2)
    tokens = torch.tensor([[[5.0, 0], [4, 0], [-1, 0], [0, 2]]])
    expected = -0.5 * (1 + 0 - 1 + math.sqrt(0.5)) / 4
    torch.testing.assert_close(alignment(seen_of(tokens), features), torch.tensor([expected]))


def test_kept_tokens_are_compared_with_the_features_of_their_own_patches():
    alignment = Unprojected(BrightPlaces(), 1.0, 0.5, 1.0, hidden_ratio=0.25)
    features = torch.tensor([[1.0, 0], [0, 2], [3, 0], [1, 1]]).T.reshape(1, 2, 2, 2)
    kept = KeptPatches(torch.tensor([[3, 1]]), torch.tensor([[1.0, 0, 1, 0]]))
    tokens = torch.tensor([[[0.0, 2], [0, 1]]])  # of patches 3 and 1: cosines of 45 degrees and of none
    expected = -(math.sqrt(0.5) + 1) / 2
    torch.testing.assert_close(alignment(seen_of(tokens, kept), features), torch.tensor([expected]))


def test_features_of_another_grid_are_brought_to_that_of_the_patches():
    alignment = Unprojected(BrightPlaces(), 1.0, 0.5, 1.0, hidden_ratio=0.25)
    features = torch.zeros(1, 2, 4, 4)
    features[:, 0, :, :2], features[:, 1, :, 2:] = 1, 1  # left, right
    tokens = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [0, 1]]])
    torch.testing.assert_close(alignment(seen_of(tokens), features), torch.tensor([-1.0]))


@pytest.mark.parametrize("mean_share", [0.0, 0.5, 1.0])
def test_irepas_features_lose_their_mean_over_the_picture_and_have_one_deviation(mean_share):
    features = torch.tensor([[1.0, 3, 5, 7], [2, 2, 2, 6]]).reshape(1, 2, 2, 2)
    target = irepa(mean_share=mean_share).target(features).flatten(2)[0]
    deviations = [math.sqrt(20 / 3), 2.0]  # with n - 1 below
    for channel, (mean, deviation) in enumerate(zip((4.0, 3.0), deviations, strict=True)):
        expected = (features[0, channel].flatten() - mean_share * mean) / deviation
        torch.testing.assert_close(target[channel], expected)


def test_irepas_projection_is_a_convolution_that_sees_zeros_where_patches_were_dropped():
    alignment = irepa(dim=2)
    tokens = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0))
    whole = alignment.project(tokens, None, (2, 3))
    picture = tokens.transpose(1, 2).reshape(1, 2, 2, 3)
    expected = alignment.projection(picture)[0, :, 1, 2]
    torch.testing.assert_close(whole[0, 5], expected)
    kept = KeptPatches(torch.tensor([[4, 0]]), torch.tensor([[0.0, 1, 1, 1, 0, 1]]))
    found = alignment.project(kept.select(tokens), kept, (2, 3))
    emptied = picture * (1 - kept.mask).view(1, 1, 2, 3)
    torch.testing.assert_close(found[0, 0], alignment.projection(emptied)[0, :, 1, 1])
    torch.testing.assert_close(found[0, 1], alignment.projection(emptied)[0, :, 0, 0])


def chance() -> Draws:
    generator = torch.Generator().manual_seed(6)
    noise_level, noise = torch.randn(2, 1, 1, 1, generator=generator), torch.randn(2, 3, 8, 8, generator=generator)
    return Draws(noise_level, noise, torch.rand(2, 16, generator=generator))


@pytest.mark.parametrize(
    ("path", "block", "tokens"),
    [
        (None, 1, 4),  # deferred: the backbone sees the kept
        (Tread(0.25, 0.25), 1, 16),
        (Tread(0.25, 0.25), 2, 4),
        (Sprint(0.25, 0.25, 0.1), 4, 16),
    ],
)
def test_tokens_are_those_that_the_block_gives_under_each_path(small_network, inputs, path, block, tokens):
    chosen = {} if path is None else {"use_patch_mixer": False, "token_path": path}
    network = small_network(**chosen)
    latents, noise_label, captions = inputs()
    seen = Seen(network, block)
    kept = network.token_path.keep(chance().mask, 0.75, (4, 4))
    output = seen(latents, noise_label, captions, kept)
    assert torch.equal(output, network(latents, noise_label, captions, kept))
    assert seen.tokens.shape == (2, tokens, 32)
    assert seen.kept is kept
    assert not network.blocks[block - 1]._forward_hooks  # watched during the call only
    for alignment in (repa(), irepa()):
        loss = alignment(seen, torch.rand(2, 2, 4, 4))
        assert loss.shape == (2,)
        assert loss.isfinite().all()


def test_blocks_up_to_the_chosen_one_learn_from_it_and_later_ones_do_not(small_network, inputs):
    network, alignment = small_network(), repa(block_share=0.5)
    latents, _, captions = inputs()
    seen = Seen(network, alignment.block(4))
    seen.token_path, seen.patch_size = network.token_path, network.patch_size
    loss_terms(seen, latents, captions, chance(), 0.75)
    alignment(seen, torch.rand(2, 2, 4, 4)).sum().backward()
    learns = {name.split(".")[1] for name, p in network.blocks.named_parameters(prefix="blocks") if p.grad is not None}
    assert learns == {"0", "1"}
    assert all(p.grad.abs().sum() > 0 for p in alignment.parameters())
    assert network.x_embedder.proj.weight.grad.abs().sum() > 0


@torch.no_grad()
@pytest.mark.parametrize("make", [repa, irepa])
@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
def test_the_loss_stays_on_the_gpu_and_the_host_reads_nothing(small_network, make, mask_ratio):
    built, layers = small_network(), make()
    with FakeTensorMode(), torch.device("cuda"):
        network = without_storage(built, torch.float32)
        kept = network.token_path.keep(torch.empty(2, 16), mask_ratio, (4, 4))
        seen = Seen(network, 2)
        seen(torch.empty(2, 3, 8, 8), torch.empty(2), torch.empty(2, 5, 16), *([] if kept is None else [kept]))
        alignment = without_storage(layers, torch.float32)
        loss = alignment(seen, torch.empty(2, 2, 4, 4, dtype=torch.float16))
    assert (loss.device.type, loss.shape) == ("cuda", (2,))


def test_of_nothing_the_loss_is_zero_with_a_gradient_for_every_weight():
    alignment = repa()
    loss = alignment()
    loss.sum().backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not p.grad.any() for p in alignment.parameters())


@pytest.mark.parametrize(("share", "depth", "block"), [(0.2857, 28, 8), (0.2857, 4, 1), (1.0, 4, 4), (0.01, 4, 1)])
def test_the_block_is_the_papers_at_every_depth(share, depth, block):
    assert repa(block_share=share).block(depth) == block


def test_it_ends_when_it_is_told():
    alignment = repa(until=0.4)
    assert [alignment.is_on(progress) for progress in (0.0, 0.39, 0.4, 1.0)] == [True, True, False, False]


@pytest.mark.parametrize("make", [repa, irepa])
@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
def test_its_cost_is_counted_as_that_of_a_real_step(small_network, inputs, make, mask_ratio):
    network, alignment = small_network(), make()
    latents, noise_label, captions = inputs(1)
    kept = keep_patches(torch.rand(1, 16), mask_ratio)
    seen = Seen(network, 2)
    seen(latents, noise_label, captions, *([] if kept is None else [kept]))
    seen.tokens = seen.tokens.detach().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        alignment(seen, torch.rand(1, 2, 4, 4)).sum().backward()
    counted = alignment_flops_per_image(alignment, network, mask_ratio, 5)
    assert counted == counter.get_total_flops() > 0


def test_what_it_costs_ends_with_it(small_network):
    network, ratio = small_network(), ConstantMaskRatio(0.75)
    costs = alignment_costs(repa(until=0.5), network, ratio, 5)
    assert costs(0.0) == costs(0.49) == alignment_flops_per_image(repa(), network, 0.75, 5)
    assert costs(0.5) == 0
    assert alignment_costs(None, network, ratio, 5)(0.0) == 0


def test_settings_make_an_alignment_for_the_networks_width(small_network):
    alignment = make_alignment(REPA, small_network())
    assert (alignment.projection[0].in_features, alignment.projection[0].out_features) == (32, 24)
    assert alignment.projection[-1].out_features == alignment.channels == 80
    assert features_of(REPA).name == "shapes_v1"


@pytest.mark.parametrize("settings", [{}, {**REPA, "weight": 0}, {**REPA, "weight": 0.0}])
def test_nothing_and_a_weight_of_zero_make_none(small_network, settings):
    assert make_alignment(settings, small_network()) is None
    assert features_of(settings) is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"weight": -1.0}, "representation.weight is the factor of the loss"),
        ({"until": 1.5}, "until must be a number from 0 to 1"),
        ({"hiden_ratio": 3}, "did you mean 'hidden_ratio'"),
        ({"features": {"_target_": "microdit.encoders.pixel.PixelAutoencoder"}}, "does not make a PatchFeatures"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(SettingsError, match=said):
        make_alignment({**REPA, **settings}, None)


def test_features_that_are_not_named_are_asked_for():
    with pytest.raises(SettingsError, match="representation needs features"):
        make_alignment({name: value for name, value in REPA.items() if name != "features"}, None)
