"""SPRINT: a sparse deep path and a dense shallow one, fused; dropping the deep one; the weak pass of guidance."""

import copy

import pytest
import torch
from counting_network import DEPTH, Counting
from denoising import loss_terms

from microdit.cost.flops import forward_flops_per_image, training_flops_per_image
from microdit.kinds import SettingsError
from microdit.masking.none import Unmasked
from microdit.masking.patches import KeptPatches
from microdit.masking.sprint import DeepPath, Sprint
from microdit.masking.token_path import NetworkParts
from microdit.masking.tread import Tread
from microdit.objectives.objective import Draws

PATCHES, WIDTH = 16, 3


def path_of(path_drop=0.0, **settings) -> Sprint:
    path = Sprint(0.25, 0.125, path_drop, **settings)
    path.make_layers(NetworkParts(WIDTH, DEPTH, 1, (4, 4), None, None, None))  # type: ignore[arg-type]
    return path


def by_hand(path: Sprint, of_deep: float, of_shallow: float, bias: float, token: float) -> None:
    """W = [of_deep I, of_shallow I], b and the learned token, as plain numbers."""
    with torch.no_grad():
        eye = torch.eye(WIDTH)
        path.fusion_weight.copy_(torch.cat([(of_deep - 1) * eye, of_shallow * eye], dim=1))
        path.fusion_bias.fill_(bias)
        path.learned_token.fill_(token)


def uniform_of(n=2, seed=5, t=PATCHES):
    return torch.rand(n, t, generator=torch.Generator().manual_seed(seed))


def chance(n=2, seed=6) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    noise_level, noise = torch.randn(n, 1, 1, 1, generator=generator), torch.randn(n, 3, 8, 8, generator=generator)
    return Draws(noise_level, noise, uniform_of(n))


@pytest.fixture
def make(small_network):
    def network(path_drop=0.0, **settings):
        return small_network(use_patch_mixer=False, token_path=Sprint(0.25, 0.25, path_drop, **settings))

    return network


def test_every_token_is_where_the_paper_has_it():
    # f = 2 after two blocks; g = 2 + 5 on kept patches and the token 10 elsewhere; h = 3 g + 5 f + 1, and one block.
    network, path = Counting(), path_of()
    by_hand(path, of_deep=3.0, of_shallow=5.0, bias=1.0, token=10.0)
    kept = path.keep(uniform_of(), 0.75, (4, 4))
    tokens, predicted = path(network, torch.zeros(2, PATCHES, WIDTH), None, kept, (4, 4))
    assert predicted is None
    assert network.seen == [(0, 2, 16), (2, 7, 4), (7, 8, 16)]
    assert torch.equal(tokens[..., 0], torch.where(kept.mask.bool(), 3 * 10 + 5 * 2 + 1 + 1.0, 3 * 7 + 5 * 2 + 1 + 1.0))


def test_a_sample_without_the_deep_path_has_the_token_in_its_place_everywhere():
    path = path_of()
    by_hand(path, of_deep=3.0, of_shallow=5.0, bias=1.0, token=10.0)
    kept = path.keep(uniform_of(), 0.75, (4, 4))
    closed = DeepPath(kept.indices, kept.mask, torch.tensor([True, False]))
    tokens, _ = path(Counting(), torch.zeros(2, PATCHES, WIDTH), None, closed, (4, 4))
    assert sorted(set(tokens[0].flatten().tolist())) == [33.0, 42.0]
    assert (tokens[1] == 42).all()


def test_the_weak_pass_leaves_out_the_middle_blocks():
    network, path = Counting(), path_of(path_drop=0.1)
    by_hand(path, of_deep=3.0, of_shallow=5.0, bias=1.0, token=10.0)
    weak = path.weak_pass(2, (4, 4), torch.device("cpu"))
    tokens, _ = path(network, torch.zeros(2, PATCHES, WIDTH), None, weak, (4, 4))
    assert network.seen == [(0, 2, 16), (7, 8, 16)]
    assert (tokens == 42).all()


def test_a_path_that_is_not_trained_for_it_has_no_weak_pass():
    with pytest.raises(SettingsError, match=r"Tread has no cheap pass .* trained with masking=sprint"):
        Tread(0.25, 0.25).weak_pass(2, (4, 4), torch.device("cpu"))
    with pytest.raises(SettingsError, match=r"trained with masking\.path_drop above 0"):
        path_of().weak_pass(2, (4, 4), torch.device("cpu"))


@torch.no_grad()
@pytest.mark.parametrize("path_drop", [0.0, 0.5])
def test_at_ratio_zero_a_fresh_network_is_that_without_masking(small_network, make, inputs, path_drop):
    fused, plain = make(path_drop), small_network(use_patch_mixer=False, token_path=Unmasked())
    plain.load_state_dict({k: v for k, v in fused.state_dict().items() if not k.startswith("token_path.")})
    fused.token_path.fusion_weight.zero_()
    fused.token_path.fusion_bias.zero_()
    latents, noise_label, captions = inputs()
    assert torch.equal(fused(latents, noise_label, captions), plain(latents, noise_label, captions))
    losses = [loss_terms(network, latents, captions, chance(), 0.0).loss for network in (fused, plain)]
    assert torch.equal(*losses)


def test_at_ratio_zero_the_first_step_of_training_has_the_gradients_of_that_without_masking(small_network, inputs):
    fresh = small_network(fresh=True, use_patch_mixer=False, token_path=Sprint(0.25, 0.25, 0.1))
    plain = small_network(fresh=True, use_patch_mixer=False, token_path=Unmasked())
    plain.load_state_dict({k: v for k, v in fresh.state_dict().items() if not k.startswith("token_path.")})
    latents, _, captions = inputs()
    for network in (fresh, plain):
        loss_terms(network, latents, captions, chance(), 0.0).loss.backward()
    gradients = dict(fresh.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad), name
    assert not gradients["token_path.learned_token"].grad.any()  # there is one, for DDP


def test_every_weight_learns_and_so_do_dropped_patches(make, inputs):
    network = make()
    latents, _, captions = inputs()
    latents.requires_grad_()
    loss_terms(network, latents, captions, chance(), 0.75).loss.backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert (torch.nn.functional.avg_pool2d(latents.grad.abs().sum(1, keepdim=True), 2) > 0).all()
    errors = torch.rand(2, PATCHES)
    kept = network.token_path.keep(uniform_of(), 0.75, (4, 4))
    assert torch.equal(network.token_path.denoising_loss(errors, kept), errors.mean(dim=1))


def test_without_the_deep_path_its_blocks_get_no_gradient(make, inputs):
    network = make(0.1)
    latents, noise_label, captions = inputs()
    kept = network.token_path.keep(uniform_of(), 0.75, (4, 4))
    closed = DeepPath(kept.indices, kept.mask, torch.tensor([False, False]))
    network(latents, noise_label, captions, closed).square().sum().backward()
    idle = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None and not p.grad.any()}
    assert idle == {"1", "2"}  # the two middle blocks of four
    with torch.no_grad():
        weak = network.token_path.weak_pass(2, (4, 4), latents.device)
        shut, without = (network(latents, noise_label, captions, one) for one in (closed, weak))
    torch.testing.assert_close(shut, without)


def test_what_the_dropped_patches_tell_reaches_the_output_through_the_shallow_path(make, inputs):
    network = make()
    latents, noise_label, captions = inputs()
    kept = network.token_path.keep(uniform_of(), 0.75, (4, 4))
    dropped = kept.mask.view(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    with torch.no_grad():
        before, after = (network(x, noise_label, captions, kept) for x in (latents, latents + 3 * dropped))
    assert (torch.nn.functional.avg_pool2d((before - after).abs().mean(1, keepdim=True), 2) > 1e-4).all()


@pytest.mark.parametrize(("ratio", "size", "of_each"), [(0.75, 2, 1), (0.5, 2, 2), (0.875, 4, 2), (0.25, 4, 12)])
def test_every_square_keeps_its_smallest_draws(ratio, size, of_each):
    uniform = uniform_of(n=3, t=64)
    kept = path_of(square_size=size).keep(uniform, ratio, (8, 8))
    assert kept.indices.shape == (3, 64 // size**2 * of_each)
    for n in range(3):
        for row in range(0, 8, size):
            for column in range(0, 8, size):
                square = [8 * (row + i) + column + j for i in range(size) for j in range(size)]
                smallest = sorted(square, key=lambda patch: float(uniform[n, patch]))[:of_each]
                assert {p for p in square if not kept.mask[n, p]} == {*smallest}
                assert {*smallest} <= {*kept.indices[n].tolist()}


def test_a_ratio_that_squares_cannot_share_is_refused_and_without_squares_taken():
    uniform = uniform_of(t=64)
    with pytest.raises(ValueError, match="leaves 25 of 64 patches, which 16 squares of 2 x 2 patches cannot share"):
        path_of().keep(uniform, 0.6, (8, 8))
    assert path_of(square_size=None).keep(uniform, 0.6, (8, 8)).indices.shape == (2, 25)


def test_the_deep_path_is_dropped_with_its_chance_whichever_patches_are_kept():
    path, n = path_of(path_drop=0.3), 20_000
    kept = path.keep(uniform_of(n=n, seed=1), 0.75, (4, 4))
    assert kept.taken.float().mean().item() == pytest.approx(0.7, abs=0.015)
    # Of each square of four, every patch is kept as often with the deep path as without.
    for taken in (True, False):
        shares = 1 - kept.mask[kept.taken == taken].mean(dim=0)
        assert (shares - 0.25).abs().max() < 0.04


def test_the_same_draws_drop_the_same_paths_and_the_mask_is_that_of_no_path_drop():
    uniform = uniform_of(n=64)
    first, again = (path_of(path_drop=0.5).keep(uniform, 0.75, (4, 4)) for _ in range(2))
    assert torch.equal(first.taken, again.taken)
    assert 10 < first.taken.sum() < 54
    never = path_of().keep(uniform, 0.75, (4, 4))
    assert type(never) is KeptPatches
    assert torch.equal(first.indices, never.indices)
    halves = [path_of(path_drop=0.5).keep(part, 0.75, (4, 4)).taken for part in uniform.chunk(2)]
    assert torch.equal(torch.cat(halves), first.taken)  # a sample's chance is its own


def test_a_network_that_is_evaluated_drops_no_path():
    path, uniform = path_of(path_drop=0.9, drops_unmasked=True), uniform_of(n=64)
    assert not path.keep(uniform, 0.0, (4, 4)).taken.all()
    path.eval()
    assert path.keep(uniform, 0.0, (4, 4)) is None
    assert type(path.keep(uniform, 0.75, (4, 4))) is KeptPatches


def test_fine_tuning_on_all_patches_goes_on_dropping_paths_if_told(make, inputs):
    network = make(path_drop=0.5, drops_unmasked=True)
    latents, noise_label, captions = inputs(8)
    kept = network.token_path.keep(uniform_of(8), 0.0, (4, 4))
    with torch.no_grad():
        output, all_of_it = network(latents, noise_label, captions, kept), network(latents, noise_label, captions)
    same = [torch.allclose(one, other, atol=1e-5) for one, other in zip(output, all_of_it, strict=True)]
    assert same == kept.taken.tolist()
    assert 0 < sum(same) < 8


def test_a_saved_network_comes_back(make, inputs):
    network, other = make(), copy.deepcopy(make())
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(network(*inputs()), other(*inputs()))


def test_its_cost_is_treads_and_the_fusions(make, small_network):
    tread = small_network(use_patch_mixer=False, token_path=Tread(0.25, 0.25))
    fusion = 2 * PATCHES * (2 * 32) * 32  # of 16 patches from twice the width of 32 to it
    for ratio in (0.75, 0.0):
        extra = forward_flops_per_image(make(0.1), ratio, 5) - forward_flops_per_image(tread, ratio, 5)
        assert extra == fusion
        assert training_flops_per_image(make(0.1), ratio, 5) - training_flops_per_image(tread, ratio, 5) == 3 * fusion


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path_drop": 1.0}, r"masking.path_drop is the chance .* in \[0, 1\): 1.0"),
        ({"square_size": 1}, "masking.square_size is 2 or more patches, or null"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        path_of(**settings)


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (6, 10)])
def test_it_generates_at_any_size(make, inputs, height, width):
    latents, noise_label, captions = inputs(2, height, width)
    network = make(0.1)
    grid = network.grid(latents)
    for kept in (None, network.token_path.weak_pass(2, grid, latents.device)):
        assert network(latents, noise_label, captions, kept).shape == latents.shape
