"""The whole network: released sizes, any input size, and what a fresh one says."""

import json
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import nn

from microdit.masking.deferred import Deferred
from microdit.masking.naive import Naive
from microdit.masking.none import Unmasked
from microdit.model.dit import DiT
from microdit.model.feed_forward import ExpertChoice
from microdit.model.sizes import MicroDiT_Tiny_2, MicroDiT_XL_2

KEYS = json.loads((Path(__file__).parents[1] / "golden" / "released_checkpoint_keys.json").read_text())
RELEASED = {
    "dit_4_channel": (MicroDiT_XL_2, {"input_size": 64, "in_channels": 4, "pos_interp_scale": 2.0}),
    "dit_16_channel": (MicroDiT_XL_2, {"input_size": 64, "in_channels": 16, "pos_interp_scale": 2.0}),
    "tiny": (MicroDiT_Tiny_2, {"input_size": 32, "in_channels": 4}),
}


def on_meta(make, **settings) -> DiT:
    with torch.device("meta"):
        return make(**settings)


@pytest.mark.parametrize("name", KEYS)
def test_released_checkpoints_have_exactly_our_keys_and_shapes(name):
    make, settings = RELEASED[name]
    ours = {key: list(value.shape) for key, value in on_meta(make, **settings).state_dict().items()}
    assert ours == KEYS[name]


@pytest.mark.parametrize(("make", "count"), [(MicroDiT_XL_2, 1_165_442_320), (MicroDiT_Tiny_2, 200_692_752)])
def test_parameter_counts_are_the_papers(make, count):
    assert sum(p.numel() for p in on_meta(make).parameters()) == count


@torch.no_grad()
@pytest.mark.parametrize("use_patch_mixer", [True, False])
def test_a_fresh_network_outputs_exactly_zero(small_network, inputs, use_patch_mixer):
    network = small_network(fresh=True, use_patch_mixer=use_patch_mixer)
    latents, noise_label, captions = inputs()
    assert network(latents, noise_label, captions).abs().max() == 0


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (12, 4), (16, 16), (2, 6)])
@pytest.mark.parametrize("length", [1, 5, 77])
def test_any_size_and_any_caption_length_goes_through(small_network, inputs, height, width, length):
    latents, noise_label, captions = inputs(2, height, width, length)
    assert small_network()(latents, noise_label, captions).shape == latents.shape


@torch.no_grad()
def test_a_network_of_another_training_size_gives_the_same_at_this_one(small_network, inputs):
    small, large = small_network(input_size=8), small_network(input_size=12)
    latents, noise_label, captions = inputs(2, 12, 12)
    torch.testing.assert_close(small(latents, noise_label, captions), large(latents, noise_label, captions))


@torch.no_grad()
def test_rows_and_columns_are_told_apart(small_network, inputs):
    network = small_network()
    latents, noise_label, captions = inputs(1, 4, 12)
    turned = network(latents.transpose(2, 3), noise_label, captions).transpose(2, 3)
    assert not torch.allclose(network(latents, noise_label, captions), turned, atol=1e-3)


@torch.no_grad()
def test_latents_that_patches_do_not_divide_are_refused(small_network, inputs):
    with pytest.raises(ValueError, match="7 x 8 cannot be cut into patches of 2"):
        small_network()(*inputs(2, 7, 8))


@torch.no_grad()
def test_captions_with_the_released_extra_axis_give_the_same(small_network, inputs):
    network = small_network()
    latents, noise_label, captions = inputs()
    plain, extra = network(latents, noise_label, captions), network(latents, noise_label, captions[:, None])
    assert torch.equal(plain, extra)


@torch.no_grad()
def test_samples_of_a_batch_do_not_see_each_other(small_network, inputs):
    network = small_network()
    latents, noise_label, captions = inputs(3)
    alone = torch.cat([network(latents[i : i + 1], noise_label[i : i + 1], captions[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(network(latents, noise_label, captions), alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("position", [0, 1, 2])
def test_latents_noise_level_and_caption_all_matter(small_network, inputs, position):
    network, given = small_network(), list(inputs())
    before = network(*given)
    given[position] = given[position] + 0.5
    assert not torch.allclose(before, network(*given), atol=1e-3)


@torch.no_grad()
def test_half_precision_captions_as_shards_hold_them_are_welcome(small_network, inputs):
    network = small_network()
    latents, noise_label, captions = inputs()
    half = network(latents, noise_label, captions.half())
    torch.testing.assert_close(half, network(latents, noise_label, captions.half().float()))


def test_a_mixer_of_the_backbones_width_needs_no_maps(small_network, inputs):
    network = small_network(patch_mixer_dim=32)
    maps = (network.patch_mixer_map_xin, network.patch_mixer_map_xout, network.patch_mixer_map_y)
    assert all(isinstance(m, nn.Identity) for m in maps)
    assert network(*inputs()).shape == (2, 3, 8, 8)
    assert not any(isinstance(m, nn.Identity) for m in small_network().children())


def test_without_a_mixer_there_are_no_mixer_weights(small_network):
    network = small_network(use_patch_mixer=False)
    assert not [key for key in network.state_dict() if "patch_mixer" in key]


def test_every_second_block_has_experts_but_not_the_last_and_not_the_first_of_the_mixer(small_network):
    def experts(blocks):
        return [i for i, block in enumerate(blocks) if isinstance(block.mlp, ExpertChoice)]

    network = small_network(depth=6, patch_mixer_depth=4)
    assert (experts(network.blocks), experts(network.patch_mixer)) == ([1, 3], [1, 3])
    every = small_network(depth=4, patch_mixer_depth=3, experts_every_n=1)
    assert (experts(every.blocks), experts(every.patch_mixer)) == ([0, 1, 2], [1, 2])
    dense = small_network(num_experts=0)
    assert (experts(dense.blocks), experts(dense.patch_mixer)) == ([], [])


def test_layerwise_scaling_grows_from_the_first_ratio_to_the_last(small_network):
    widths = [block.attn.proj.in_features for block in small_network(dim=64, depth=3, num_experts=0).blocks]
    assert widths == [32, 48, 64]
    hidden = [block.mlp.w1.out_features for block in small_network(dim=64, depth=3, num_experts=0).blocks]
    assert hidden == [32, 96, 176]  # 2/3 of 0.5, 2.25 and 4 times 64, rounded up to 16
    even = small_network(dim=64, depth=3, num_experts=0, attention_ratios=(1.0, 1.0), ffn_ratios=(4.0, 4.0))
    assert {block.attn.proj.in_features for block in even.blocks} == {64}


@pytest.mark.parametrize("name", ["qkv_multipliers", "ffn_multipliers"])
def test_one_ratio_a_block_is_needed(small_settings, name):
    settings = {k: v for k, v in small_settings.items() if not k.endswith("_ratios")}
    ratios = {"qkv_multipliers": [1.0] * 4, "ffn_multipliers": [1.0] * 4, name: [1.0] * 3}
    with pytest.raises(ValueError, match=f"{name} needs one ratio a block: 4 blocks, 3 ratios"):
        DiT(**settings, **ratios)


@pytest.mark.parametrize(("path", "use_patch_mixer"), [(Deferred, False), (Naive, True), (Unmasked, True)])
def test_a_token_path_and_a_mixer_that_do_not_fit_are_refused(small_network, path, use_patch_mixer):
    with pytest.raises(ValueError, match=f"{path.__name__}.*set use_patch_mixer={not use_patch_mixer}"):
        small_network(use_patch_mixer=use_patch_mixer, token_path=path())


def test_the_token_path_follows_the_mixer_if_none_is_given(small_network):
    assert isinstance(small_network(use_patch_mixer=True).token_path, Deferred)
    assert isinstance(small_network(use_patch_mixer=False).token_path, Naive)


def test_checkpointing_activations_keeps_less_and_changes_no_gradient(small_network, inputs):
    def step(network):
        kept_for_backward = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept_for_backward.append(t.numel()) or t, lambda t: t):
            loss = network(*inputs()).square().mean()
        loss.backward()
        return sum(kept_for_backward), [p.grad for p in network.parameters()]

    network, saving = small_network(), small_network()
    saving.load_state_dict(network.state_dict())
    for each in (network, saving):
        torch.nn.init.normal_(each.final_layer.linear.weight, generator=torch.Generator().manual_seed(0))
    saving.checkpoint_activations()
    everything, gradients = step(network)
    least, same_gradients = step(saving)
    assert least < everything / 3
    for gradient, same in zip(gradients, same_gradients, strict=True):
        torch.testing.assert_close(gradient, same)


def test_shapes_in_signatures_are_checked_here(small_network, inputs):
    latents, noise_label, captions = inputs()
    with pytest.raises(TypeCheckError):
        small_network()(latents, noise_label[:1], captions)
