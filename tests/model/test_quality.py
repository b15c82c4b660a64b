"""The quality of a picture is one more condition, and of a network that reads none nothing changes."""

import pytest
import torch

from microdit.kinds import SettingsError
from microdit.sampling.guidance import guided

UNKNOWN = torch.full((3,), torch.nan)
GOOD = torch.tensor([1.0, 0.5, 0.0])


@torch.no_grad()
def test_a_network_that_reads_none_has_no_layers_for_it_and_refuses_one(small_network, inputs):
    network = small_network()
    assert not [name for name in network.state_dict() if "q_embedder" in name]
    with pytest.raises(SettingsError, match="trained without the quality of pictures"):
        network(*inputs(3), quality=GOOD)
    with pytest.raises(SettingsError, match=r"leave sampling\.quality at null"):
        network.read_captions(inputs(3)[2], 1.0)


@torch.no_grad()
def test_a_quality_that_is_not_told_is_none_and_others_differ(small_network, inputs):
    network = small_network(quality_dropout=0.1)
    untold = network(*inputs(3))
    assert torch.equal(network(*inputs(3), quality=UNKNOWN), untold)
    told = network(*inputs(3), quality=GOOD)
    some = network(*inputs(3), quality=torch.tensor([1.0, torch.nan, 0.0]))
    torch.testing.assert_close(some[[0, 2]], told[[0, 2]])
    torch.testing.assert_close(some[1], untold[1])
    assert not torch.allclose(told, untold, atol=1e-3)
    same = network(*(x[:1].expand(3, *x.shape[1:]) for x in inputs(3)), quality=GOOD)
    assert not torch.allclose(same[0], same[1], atol=1e-3)


def test_a_fresh_network_gives_what_it_gives_without_and_learns_from_it(small_network, inputs):
    network = small_network(fresh=True, quality_dropout=0.1)
    torch.nn.init.normal_(network.final_layer.linear.weight)
    torch.nn.init.normal_(network.final_layer.adaLN_modulation[1].weight)
    plain, told = network(*inputs(3)), network(*inputs(3), quality=GOOD)
    assert torch.equal(told, plain)
    told.square().mean().backward()
    assert network.q_embedder.mlp[2].weight.grad.abs().sum() > 0


@torch.no_grad()
def test_drawn_with_a_quality_guidance_is_away_from_neither_caption_nor_quality(small_network, inputs):
    network = small_network(quality_dropout=0.1)
    latents, noise_label, captions = inputs(3)
    with_both = network(latents, noise_label, captions, quality=torch.ones(3))
    without = network(latents, noise_label, torch.zeros_like(captions))
    found = guided(network, 3.0)(latents, noise_label, network.read_captions(captions, 1.0))
    torch.testing.assert_close(found, without + 3.0 * (with_both - without), atol=1e-4, rtol=1e-4)
