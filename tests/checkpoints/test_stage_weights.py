"""What goes from one stage of training to the next, and what cannot."""

import pytest
import torch

from microdit.checkpoints.reading import CheckpointError
from microdit.checkpoints.starting import move_weights
from microdit.masking.maskdit import MaskDiT
from microdit.masking.naive import Naive
from microdit.masking.none import Unmasked
from microdit.masking.patches import keep_patches


def test_all_weights_go_from_256_to_512_px_and_positions_are_the_targets_own(small_network):
    source, target = small_network(), small_network(fresh=True, input_size=16, pos_interp_scale=2.0)
    positions = target.pos_embed.clone()
    move_weights(source.state_dict(), target, "stage 2")
    for name, parameter in target.named_parameters():
        assert torch.equal(parameter, source.state_dict()[name]), name
    assert torch.equal(target.pos_embed, positions)


def test_every_second_patch_of_512_px_is_where_a_patch_of_256_px_was(small_network):
    source, target = small_network(), small_network(input_size=16, pos_interp_scale=2.0)
    move_weights(source.state_dict(), target, "stage 2")
    fine = target.pos_embed.view(8, 8, -1)
    torch.testing.assert_close(fine[::2, ::2].flatten(0, 1), source.pos_embed[0])


@torch.no_grad()
def test_a_network_trained_with_masked_patches_goes_on_with_all_of_them_as_it_is(small_network, inputs):
    masked, unmasked = small_network(), small_network(fresh=True)
    move_weights(masked.state_dict(), unmasked, "stage 1")
    latents, noise_label, captions = inputs()
    assert len(unmasked.patch_mixer) == len(masked.patch_mixer) > 0
    assert torch.equal(unmasked(latents, noise_label, captions), masked(latents, noise_label, captions))
    kept = keep_patches(torch.rand(2, 16), 0.75)
    assert torch.equal(unmasked(latents, noise_label, captions, kept), masked(latents, noise_label, captions, kept))


def test_without_a_mixer_masking_can_be_given_up_altogether(small_network):
    naive = small_network(use_patch_mixer=False, token_path=Naive())
    unmasked = small_network(fresh=True, use_patch_mixer=False, token_path=Unmasked())
    move_weights(naive.state_dict(), unmasked, "stage 1")
    assert torch.equal(unmasked.final_layer.linear.weight, naive.final_layer.linear.weight)


def test_other_latent_channels_are_refused_with_a_sentence(small_network):
    target = small_network(in_channels=16)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"4 latent channels and this one is for 16: .* trained from scratch"):
        move_weights(small_network(in_channels=4).state_dict(), target, "stage 1")
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("into_mixer", [True, False])
def test_a_patch_mixer_neither_vanishes_nor_appears(small_network, into_mixer):
    source, target = small_network(use_patch_mixer=not into_mixer), small_network(use_patch_mixer=into_mixer)
    told = r"has a patch-mixer and .* has none: keep the masking method of stage 1; .* set mask_ratio=none"
    with pytest.raises(CheckpointError, match=told):
        move_weights(source.state_dict(), target, "stage 1")


def test_layers_of_a_masking_methods_own_neither_vanish_nor_appear(small_network):
    maskdit = small_network(use_patch_mixer=False, token_path=MaskDiT(0.5, 0.5, 0.1))
    naive = small_network(use_patch_mixer=False)
    for source, target in ((maskdit, naive), (naive, maskdit)):
        with pytest.raises(CheckpointError, match="layers of its masking method's own"):
            move_weights(source.state_dict(), target, "stage 1")


def test_anything_else_that_does_not_fit_is_listed(small_network):
    with pytest.raises(CheckpointError, match=r"stage 1 does not fit this network:\s+missing blocks\."):
        move_weights(small_network().state_dict(), small_network(depth=5), "stage 1")
