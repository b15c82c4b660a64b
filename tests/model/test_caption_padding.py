"""With masks_padding the zeros behind a caption change nothing, wherever captions are read, and in no other way."""

import pytest
import torch

from microdit.encoders import PixelAutoencoder, WordsTextEncoder
from microdit.kinds import SettingsError
from microdit.masking.deferred import Deferred
from microdit.masking.maskdit import MaskDiT
from microdit.masking.patches import keep_patches
from microdit.masking.sprint import Sprint
from microdit.model.dit import caption_tokens_present
from microdit.pipeline import LatentDiffusion
from microdit.sampling.guidance import guided

PATHS = {
    "deferred": lambda: {"token_path": Deferred(), "use_patch_mixer": True},
    "maskdit": lambda: {"token_path": MaskDiT(0.5, 0.5, 0.1), "use_patch_mixer": False},
    "sprint": lambda: {"token_path": Sprint(0.25, 0.25, 0.1), "use_patch_mixer": False},
}
ENDS = (5, 3, 1)


def assert_close(actual, expected, tolerance=1e-5):
    assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.fixture(params=PATHS)
def network(request, small_network):
    return small_network(**PATHS[request.param](), masks_padding=True)


@pytest.fixture
def padded(inputs):
    """Latents, noise labels, and captions that end after 5, 3 and 1 of 5 tokens."""
    latents, noise_label, captions = inputs(3)
    for caption, end in zip(captions, ENDS, strict=True):
        caption[end:] = 0
    return latents, noise_label, captions


def longer(captions, by=4):
    return torch.cat([captions, captions.new_zeros(len(captions), by, captions.shape[2])], dim=1)


def kept():
    return keep_patches(torch.rand(3, 16, generator=torch.Generator().manual_seed(3)), 0.5)


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("read_once", [False, True])
def test_more_padding_changes_nothing(network, padded, masked, read_once):
    latents, noise_label, captions = padded

    def called(captions):
        given = network.read_captions(captions) if read_once else captions
        return network(latents, noise_label, given, kept() if masked else None)

    assert_close(called(longer(captions)), called(captions), 1e-6)


@torch.no_grad()
def test_each_caption_is_read_as_if_it_stood_alone_without_padding(network, padded):
    latents, noise_label, captions = padded
    together = network(latents, noise_label, captions)
    for i, end in enumerate(ENDS):
        alone = network(latents[i : i + 1], noise_label[i : i + 1], captions[i : i + 1, :end])
        assert_close(together[i : i + 1], alone)


def test_nothing_is_learnt_from_padding(network, padded):
    latents, noise_label, captions = padded

    def gradients(captions):
        network.zero_grad()
        network(latents, noise_label, captions, kept()).square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}

    short, long = gradients(captions), gradients(longer(captions))
    assert short.keys() == long.keys()
    for name, gradient in short.items():
        assert (long[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name


@torch.no_grad()
def test_without_the_setting_padding_is_read_as_in_the_paper(small_network, padded):
    latents, noise_label, captions = padded
    network = small_network()
    plain = network(latents, noise_label, captions)
    assert not torch.allclose(network(latents, noise_label, longer(captions)), plain, atol=1e-3)
    masking = small_network(masks_padding=True)
    assert masking.state_dict().keys() == network.state_dict().keys()
    assert_close(masking(latents[:1], noise_label[:1], captions[:1]), plain[:1], 1e-6)  # a caption without padding


@torch.no_grad()
def test_no_caption_is_the_same_at_every_length(network, padded):
    latents, noise_label, captions = padded
    none = torch.zeros_like(captions)
    assert caption_tokens_present(none).all()
    assert_close(network(latents, noise_label, longer(none)), network(latents, noise_label, none))


@torch.no_grad()
def test_guidance_by_captions_read_once_is_that_by_zeros(network, padded):
    latents, noise_label, captions = padded
    by_zeros = guided(network, 3.0)(latents, noise_label, captions)
    assert_close(guided(network, 3.0)(latents, noise_label, network.read_captions(longer(captions))), by_zeros)


@torch.no_grad()
def test_padding_changes_nothing_under_autocast(network, padded):
    latents, noise_label, captions = padded
    expected = network(latents, noise_label, captions)
    with torch.autocast("cpu", torch.bfloat16):
        short = network(latents, noise_label, captions)
        long = network(latents, noise_label, longer(captions))
        much = network(latents, noise_label, longer(captions, by=300))  # which torch's own attention takes
    error = float((short - expected).norm() / expected.norm())
    assert_close(long, short, 0.5 * error)
    assert_close(much, expected, 3 * error)


def test_network_and_text_encoder_agree_or_are_refused(small_network):
    network = small_network(masks_padding=True)
    encoder = WordsTextEncoder(channels=16, masks_padding=True)
    assert LatentDiffusion(network, PixelAutoencoder(), encoder).text_encoder.masks_padding
    with pytest.raises(SettingsError, match="one masks the padding"):
        LatentDiffusion(network, PixelAutoencoder(), WordsTextEncoder(channels=16))
