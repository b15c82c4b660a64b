"""Captions read once give what captions give, and samples beyond them what a caption of zeros gives, for less work."""

import subprocess
import sys

import pytest
import torch

from microdit.masking.deferred import Deferred
from microdit.masking.maskdit import MaskDiT
from microdit.masking.naive import Naive
from microdit.masking.patches import keep_patches
from microdit.masking.sprint import Sprint

PATHS = {
    "deferred": lambda: {"token_path": Deferred(), "use_patch_mixer": True},
    "naive": lambda: {"token_path": Naive(), "use_patch_mixer": False},
    "maskdit": lambda: {"token_path": MaskDiT(0.5, 0.5, 0.1), "use_patch_mixer": False},
    "sprint": lambda: {"token_path": Sprint(0.25, 0.25, 0.1), "use_patch_mixer": False},
    "equally wide mixer": lambda: {"token_path": Deferred(), "use_patch_mixer": True, "patch_mixer_dim": 32},
}


@pytest.fixture(params=PATHS)
def network(request, small_network):
    return small_network(**PATHS[request.param]())


def doubled(latents, noise_label, captions):
    """What guidance asks of a network: each sample with its caption, then each with zeros."""
    return latents.repeat(2, 1, 1, 1), noise_label.repeat(2), torch.cat([captions, torch.zeros_like(captions)])


def assert_close(actual, expected, tolerance=1e-5):
    assert (actual - expected).norm() <= tolerance * expected.norm()


@torch.no_grad()
def test_captions_read_before_give_what_captions_give(network, inputs):
    latents, noise_label, captions = inputs(3)
    expected = network(latents, noise_label, captions)
    assert_close(network(latents, noise_label, network.read_captions(captions)), expected)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 5, 77])
def test_samples_beyond_the_captions_get_what_zeros_for_a_caption_give(network, inputs, length):
    latents, noise_label, captions = doubled(*inputs(3, length=length))
    expected = network(latents, noise_label, captions)
    assert_close(network(latents, noise_label, network.read_captions(captions[:3])), expected)
    assert not torch.allclose(expected[:3], expected[3:], atol=1e-2)


@torch.no_grad()
def test_one_reading_serves_every_noise_level_and_picture(network, inputs):
    latents, noise_label, captions = inputs()
    memory = network.read_captions(captions)
    for shift in (0.0, 0.7):
        expected = network(latents + shift, noise_label - shift, captions)
        assert_close(network(latents + shift, noise_label - shift, memory), expected)


@torch.no_grad()
def test_captions_read_before_can_be_used_under_a_mask(small_network, inputs):
    network = small_network()
    latents, noise_label, captions = inputs()
    kept = keep_patches(torch.rand(2, 16, generator=torch.Generator().manual_seed(3)), 0.75)
    expected = network(latents, noise_label, captions, kept)
    assert_close(network(latents, noise_label, network.read_captions(captions), kept), expected)


@torch.no_grad()
def test_captions_with_the_released_extra_axis_are_read_alike(small_network, inputs):
    network = small_network()
    latents, noise_label, captions = inputs()
    plain = network(latents, noise_label, network.read_captions(captions))
    assert torch.equal(network(latents, noise_label, network.read_captions(captions[:, None])), plain)


@torch.no_grad()
def test_an_evaluation_reads_no_captions_and_asks_nothing_where_there_is_none(small_network, inputs):
    network = small_network()
    latents, noise_label, captions = doubled(*inputs(3))
    memory = network.read_captions(captions[:3])
    read, queried = [], []
    for name, module in network.named_modules():
        if name.endswith("kv_linear") or "y_emb" in name or name == "patch_mixer_map_y":
            module.register_forward_hook(lambda module, given, out: read.append(module))
        if name.endswith("q_linear"):
            module.register_forward_hook(lambda module, given, out: queried.append(len(given[0])))
    network(latents, noise_label, memory)
    assert not read
    assert queried == [3] * 6  # two blocks of the mixer, four of the backbone


@torch.no_grad()
def test_reading_under_autocast_stays_near_full_precision(small_network, inputs):
    network = small_network()
    latents, noise_label, captions = doubled(*inputs(3))
    expected = network(latents, noise_label, captions)
    with torch.autocast("cpu", torch.bfloat16):
        plain = network(latents, noise_label, captions)
        remembered = network(latents, noise_label, network.read_captions(captions[:3]))
    assert remembered.dtype == plain.dtype
    assert_close(remembered, expected, 2 * float((plain - expected).norm() / expected.norm()))


COMPILED = """
import torch
from microdit.model.blocks import DiTBlock
from microdit.model.feed_forward import ExpertChoice

torch.manual_seed(0)
block = DiTBlock(32, 32, 0.5, 8, False, 1e-6, ExpertChoice(32, 2.0, 16, 4, 2.0))
with torch.no_grad():
    for parameter in block.parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
    x, captions, conditioning = torch.randn(6, 16, 32), torch.randn(6, 5, 32), torch.randn(6, 32)
    captions[3:] = captions[3, 0]  # what zeros become: all tokens alike
    read = block.cross_attn.read(captions[:4])
    expected = block(x, captions, conditioning)
    block.compile(dynamic=True, fullgraph=True, backend="eager")
    for given in (captions, read):
        torch.testing.assert_close(block(x, given, conditioning), expected, atol=1e-5, rtol=1e-5)
    fewer = torch.randn(5, 9, 32), torch.randn(5, 32)
    expected = block(fewer[0], captions[:5], fewer[1])
    torch.testing.assert_close(block(fewer[0], read, fewer[1]), expected, atol=1e-5, rtol=1e-5)
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
"""


def test_a_block_compiles_whole_once_with_captions_and_once_with_what_was_read():
    # In a process of its own, because the checks of shapes that tests install cannot be traced.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
