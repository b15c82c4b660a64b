"""Guidance: what is asked of the network, and how its answers are put together."""

import pytest
import torch
from small_losses import SIGMA_DATA, constant, sigmas

from microdit.cost.flops import FlopCounter
from microdit.masking.sprint import Sprint
from microdit.objectives.edm import EDM
from microdit.objectives.objective import denoise
from microdit.objectives.rectified_flow import RectifiedFlow
from microdit.sampling.guidance import autoguided, guided, guided_by_path_drop, guided_denoiser


def test_guidance_of_one_is_the_network_itself():
    network = constant(1.0)
    assert guided(network, 1.0) is network


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0])
def test_guidance_moves_from_the_output_without_a_caption_through_the_one_with(small_network, inputs, scale):
    network = small_network()
    latents, noise_label, captions = inputs()
    with_caption = network(latents, noise_label, captions)
    without = network(latents, noise_label, torch.zeros_like(captions))
    assert not torch.allclose(with_caption, without, atol=1e-3)
    expected = without + scale * (with_caption - without)
    torch.testing.assert_close(guided(network, scale)(latents, noise_label, captions), expected, atol=1e-4, rtol=1e-4)


def test_guidance_takes_one_call():
    calls = []

    def network(x, noise_label, captions):
        calls.append(len(x))
        return x

    guided(network, 3.0)(torch.randn(2, 3, 4, 4), torch.randn(2), torch.randn(2, 5, 16))
    assert calls == [4]


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_guidance_with_captions_that_were_read_gives_the_same(small_network, inputs, scale):
    network = small_network()
    latents, noise_label, captions = inputs()
    expected = guided(network, scale)(latents, noise_label, captions)
    remembered = guided(network, scale)(latents, noise_label, network.read_captions(captions))
    torch.testing.assert_close(remembered, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_guided_denoiser_is_edms_over_the_guided_network(small_network, inputs):
    network = small_network()
    x, _, captions = inputs()
    denoised = guided_denoiser(network, captions, EDM(SIGMA_DATA), guidance_scale=3.0)(x.double(), 0.7)
    expected = denoise(guided(network, 3.0), x, sigmas(0.7, 0.7), captions, EDM(SIGMA_DATA))
    assert denoised.dtype == torch.float64
    torch.testing.assert_close(denoised, expected.double())


@pytest.mark.parametrize(
    ("scale", "interval", "guided_levels"),
    [
        (3.0, None, [50.0, 2.0, 0.5, 0.01]),
        (3.0, [0.5, 2.0], [2.0]),
        (3.0, (0.0, 80.0), [50.0, 2.0, 0.5, 0.01]),
        (1.0, None, []),
    ],
)
def test_only_noise_levels_in_the_interval_are_guided_and_cost_twice(scale, interval, guided_levels):
    samples = []

    def network(x, noise_label, captions):
        samples.append(len(x))
        return x

    denoiser = guided_denoiser(network, torch.randn(2, 5, 16), EDM(SIGMA_DATA), scale, interval)
    for sigma in (50.0, 2.0, 0.5, 0.01):
        samples.clear()
        denoiser(torch.randn(2, 3, 4, 4, dtype=torch.float64), sigma)
        assert samples == [4 if sigma in guided_levels else 2]


@pytest.mark.parametrize("interval", [[2.0, 0.5], [1.0, 1.0], [-1.0, 2.0], [0.5], [], [0.1, 0.2, 0.3]])
def test_an_interval_that_is_none_is_refused(interval):
    with pytest.raises(ValueError, match=r"guidance_interval is two noise levels \[low, high\], 0 <= low < high"):
        guided_denoiser(constant(1.0), torch.randn(2, 5, 16), EDM(SIGMA_DATA), 3.0, interval)


@pytest.fixture
def sprint(small_network):
    return small_network(use_patch_mixer=False, token_path=Sprint(0.25, 0.25, 0.1))


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("read_once", [False, True])
def test_path_drop_guidance_moves_from_the_network_without_caption_and_middle(sprint, inputs, scale, read_once):
    latents, noise_label, captions = inputs()
    closed = sprint.token_path.weak_pass(2, (4, 4), latents.device)
    weak = sprint(latents, noise_label, torch.zeros_like(captions), closed)
    strong = sprint(latents, noise_label, captions)
    assert not torch.allclose(weak, guided(sprint, 0.0)(latents, noise_label, captions), atol=1e-2)
    given = sprint.read_captions(captions) if read_once else captions
    found = guided_by_path_drop(sprint, scale)(latents, noise_label, given)
    torch.testing.assert_close(found, weak + scale * (strong - weak), atol=1e-4, rtol=1e-4)
    assert guided_by_path_drop(sprint, 1.0) is sprint


@torch.no_grad()
def test_path_drop_guidance_costs_less_than_guidance_by_captions(small_network, inputs):
    deep = small_network(use_patch_mixer=False, depth=10, token_path=Sprint(0.1, 0.1, 0.1)).eval()
    latents, noise_label, captions = inputs()
    memory = deep.read_captions(captions)
    flops = []
    for network in (deep, guided_by_path_drop(deep, 3.0), guided(deep, 3.0)):
        with FlopCounter() as counter:
            network(latents, noise_label, memory)
        flops.append(counter.flops / 1e6)
    plain, dropped, captioned = flops
    assert dropped < plain + 0.4 * (captioned - plain)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_autoguidance_moves_from_the_weaker_network_through_the_better_one(small_network, inputs, scale):
    better, worse = small_network(), small_network(depth=2, patch_mixer_depth=1)
    x, _, captions = inputs()
    # What they learned may differ: both are denoisers.
    strong = guided_denoiser(better, captions, EDM(SIGMA_DATA), 1.0)
    weak = guided_denoiser(worse, captions, RectifiedFlow(SIGMA_DATA), 1.0)
    expected = weak(x, 0.7) + scale * (strong(x, 0.7) - weak(x, 0.7))
    assert not torch.allclose(weak(x, 0.7), strong(x, 0.7), atol=1e-2)
    torch.testing.assert_close(autoguided(strong, weak, scale)(x, 0.7), expected)


@pytest.mark.parametrize(("scale", "asked"), [(1.0, []), (2.0, [2.0])])
def test_the_weaker_network_is_asked_where_there_is_guidance_alone(scale, asked):
    levels = []

    def weak(x, sigma):
        levels.append(sigma)
        return x

    denoiser = autoguided(lambda x, sigma: 2 * x, weak, scale, [0.5, 2.0])
    x = torch.ones(1, 3, 4, 4)
    found = [denoiser(x, sigma).mean().item() for sigma in (50.0, 2.0, 0.5)]
    assert levels == asked
    assert found == [2, 3 if asked else 2, 2]
