"""TREAD: dropped patches go around the middle blocks, unchanged, and count in the loss."""

import pytest
import torch
from counting_network import DEPTH, Counting
from denoising import loss_terms

from microdit.masking.none import Unmasked
from microdit.masking.patches import keep_patches
from microdit.masking.token_path import NetworkParts
from microdit.masking.tread import Tread
from microdit.objectives.objective import Draws

PATCHES = 16


def path_of(first_share=0.25, last_share=0.125, depth=DEPTH) -> Tread:
    path = Tread(first_share, last_share)
    path.make_layers(NetworkParts(32, depth, 8, (4, 4), None, None, None))  # type: ignore[arg-type]
    return path


def kept_of(n=2):
    return keep_patches(torch.rand(n, PATCHES, generator=torch.Generator().manual_seed(5)), 0.75)


def test_kept_patches_go_through_every_block_and_dropped_ones_around_the_middle():
    network, kept = Counting(), kept_of()
    tokens, predicted = path_of()(network, torch.zeros(2, PATCHES, 3), None, kept, (4, 4))
    assert predicted is None
    assert network.seen == [(0, 2, 16), (2, 7, 4), (7, 8, 16)]
    assert torch.equal(tokens[..., 0], torch.where(kept.mask.bool(), 3.0, 8.0))


def test_without_a_mask_every_block_sees_all_patches():
    network = Counting()
    tokens, _ = path_of()(network, torch.zeros(2, PATCHES, 3), None, None, (4, 4))
    assert torch.equal(tokens, torch.full((2, PATCHES, 3), 8.0))


@torch.no_grad()
def test_without_a_mask_the_network_is_that_without_masking(small_network, inputs):
    routed = small_network(use_patch_mixer=False, token_path=Tread(0.25, 0.25))
    plain = small_network(use_patch_mixer=False, token_path=Unmasked())
    plain.load_state_dict(routed.state_dict())  # no layers of its own
    assert torch.equal(routed(*inputs()), plain(*inputs()))


def test_the_loss_is_on_all_patches_and_what_is_dropped_learns_too(small_network, inputs):
    network = small_network(use_patch_mixer=False, token_path=Tread(0.25, 0.25))
    latents, _, captions = inputs()
    generator = torch.Generator().manual_seed(6)
    draws = Draws(torch.randn(2, 1, 1, 1, generator=generator), torch.randn(2, 3, 8, 8), torch.rand(2, PATCHES))
    latents.requires_grad_()
    errors = torch.rand(2, PATCHES)
    assert torch.equal(network.token_path.denoising_loss(errors, kept_of()), errors.mean(dim=1))
    loss_terms(network, latents, captions, draws, 0.75).loss.backward()
    assert (torch.nn.functional.avg_pool2d(latents.grad.abs().sum(1, keepdim=True), 2) > 0).all()


@pytest.mark.parametrize(("depth", "leaves", "returns"), [(4, 1, 3), (12, 1, 10), (28, 2, 24)])
def test_the_shares_are_the_papers_blocks_at_every_depth(depth, leaves, returns):
    path = path_of(0.08, 0.14, depth)
    assert (path.leaves, path.returns) == (leaves, returns)


@pytest.mark.parametrize(
    ("shares", "depth", "message"),
    [
        ((0.0, 0.1), 8, "masking.first_share is a share"),
        ((0.1, 1.0), 8, "masking.last_share is a share"),
        ((0.5, 0.5), 8, "leave none of 8 blocks between them"),
        ((0.1, 0.1), 2, "leave none of 2 blocks"),
    ],
)
def test_shares_that_leave_no_middle_are_refused(shares, depth, message):
    with pytest.raises(ValueError, match=message):
        path_of(*shares, depth)
