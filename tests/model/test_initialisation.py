"""A fresh network has the statistics that were measured on the released architecture."""

import json
import math
from pathlib import Path

import pytest
import torch

from microdit.model.sizes import MicroDiT_Tiny_2

MEASURED = json.loads((Path(__file__).parents[1] / "golden" / "initial_statistics_tiny.json").read_text())
ROUNDING = 1e-6  # of the measured numbers
STANDARD_ERRORS = 4.5  # of a difference between two draws; with 580 comparisons chance alone passes it in one of 250


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return MicroDiT_Tiny_2()


def test_every_parameter_of_tiny_has_the_measured_mean_and_deviation(tiny):
    parameters = dict(tiny.named_parameters())
    assert parameters.keys() == MEASURED.keys()
    wrong = []
    for name, parameter in parameters.items():
        measured, values = MEASURED[name], parameter.detach()
        assert values.numel() == measured["numel"]
        mean, std = values.mean().item(), values.std().item()
        if measured["std"] == 0:  # constants are exact
            fits = std == 0 and mean == measured["mean"]
        else:
            unit = math.sqrt(2) * measured["std"] / math.sqrt(values.numel())
            fits = (
                abs(mean - measured["mean"]) <= STANDARD_ERRORS * unit + ROUNDING
                and abs(std - measured["std"]) <= STANDARD_ERRORS * unit / math.sqrt(2) + ROUNDING
            )
        if not fits:
            wrong.append(f"{name}: mean {mean:.6f} std {std:.6f}, measured {measured}")
    assert not wrong, "\n".join(wrong)


def test_the_patch_convolutions_bias_is_torchs_uniform_default(tiny):
    bound = 1 / math.sqrt(4 * 2 * 2)
    bias = tiny.x_embedder.proj.bias
    assert bias.abs().max() <= bound
    assert bias.abs().max() > 0.98 * bound


def test_layers_to_and_from_the_mixers_width_are_xavier_uniform(small_network):
    network = small_network(fresh=True, dim=64, patch_mixer_dim=48)
    for layer in (network.patch_mixer_map_xin[1], network.patch_mixer_map_xout[1], network.patch_mixer_map_y[1]):
        bound = math.sqrt(6 / (64 + 48))
        assert 0.99 * bound < layer.weight.abs().max() <= bound


@pytest.mark.parametrize("depth_init", [True, False])
def test_residual_layers_shrink_with_depth_block_by_block_or_all_alike(small_network, depth_init):
    network = small_network(fresh=True, dim=128, depth=4, depth_init=depth_init, num_experts=0, patch_mixer_dim=96)
    for i, block in enumerate(network.blocks):
        expected = 0.02 / math.sqrt(2 * (i + 1 if depth_init else 4))
        for weight in (block.attn.proj.weight, block.cross_attn.proj.weight, block.mlp.w2.weight, block.mlp.w3.weight):
            assert weight.std().item() == pytest.approx(expected, rel=0.05)
    for block in network.patch_mixer:  # the mixer goes by the backbone's depth, always
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / math.sqrt(8), rel=0.05)


def test_biases_start_at_zero_where_there_are_any(small_network):
    network = small_network(fresh=True, use_bias=True)
    biases = {k: v for k, v in network.named_parameters() if k.endswith("bias") and k != "x_embedder.proj.bias"}
    assert "blocks.0.attn.qkv.bias" in biases
    assert "patch_mixer_map_xin.1.bias" in biases
    assert all((value == 0).all() for value in biases.values())


def test_the_blocks_deviation_can_be_chosen(small_network):
    def deviations(std):
        network = small_network(fresh=True, dim=128, initial_std=std, num_experts=0)
        layers = network.blocks[0].attn.qkv, network.blocks[1].mlp.w3, network.patch_mixer[0].cross_attn.proj
        return [layer.weight.std().item() for layer in layers]

    assert deviations(0.06) == pytest.approx([3 * std for std in deviations(0.02)], rel=0.05)


def test_the_mixers_keys_can_start_out_like_its_queries_and_as_large(small_network):
    network = small_network(fresh=True, dim=128, patch_mixer_dim=96, mimetic_init=0.9)
    queries, keys, _ = network.patch_mixer[0].attn.qkv.weight.detach().chunk(3)
    correlation = torch.corrcoef(torch.stack([queries.flatten(), keys.flatten()]))[0, 1]
    assert correlation == pytest.approx(0.9, abs=0.02)
    assert keys.std() == pytest.approx(queries.std().item(), rel=0.05)
    queries, keys, _ = network.blocks[0].attn.qkv.weight.detach().chunk(3)
    assert torch.corrcoef(torch.stack([queries.flatten(), keys.flatten()]))[0, 1].abs() < 0.05
