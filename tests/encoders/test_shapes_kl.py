"""The autoencoder that comes with the package: as declared, small, and good enough for the detector."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from compositions import CONF

from microdit.build import build
from microdit.data import shapes
from microdit.encoders import Autoencoder, KLAutoencoder
from microdit.evaluation.shapes.compositional import fulfils
from microdit.evaluation.shapes.detector import detect
from microdit.pretrained import embedded_folder

SCENES = 48
MB = 1e6


@pytest.fixture(scope="module")
def autoencoder() -> KLAutoencoder:
    built = build(yaml.safe_load((CONF / "autoencoder" / "shapes_kl.yaml").read_text()), Autoencoder)
    assert isinstance(built, KLAutoencoder)
    built.load()  # refuses weights that are not as the file declares
    return built


def scenes(domain: str, side_px: int) -> tuple[list[shapes.Sample], torch.Tensor]:
    samples = [shapes.sample("evaluation", domain, number, seed=9) for number in range(SCENES)]
    pictures = np.stack([shapes.render(sample.scene, side_px) for sample in samples])
    return samples, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def test_its_weights_take_no_more_room_than_a_repository_has_for_them():
    files = sum(file.stat().st_size for file in Path(embedded_folder("embedded:shapes_kl")).iterdir())
    assert files < 3 * MB


@pytest.mark.parametrize("side_px", [64, 128])
@pytest.mark.parametrize("domain", shapes.DOMAINS)
def test_scenes_show_their_captions_after_it(autoencoder, domain, side_px):
    samples, pictures = scenes(domain, side_px)
    latents = autoencoder.encode(pictures)
    assert latents.shape == (SCENES, autoencoder.channels, side_px // 8, side_px // 8)
    made = autoencoder.decode(latents)
    assert (made - pictures).abs().mean() < 0.03
    right = [fulfils(detect(picture), sample.prompt) for picture, sample in zip(made, samples, strict=True)]
    assert np.mean(right) > 0.95


def test_its_latents_have_the_deviation_that_is_declared(autoencoder):
    latents = torch.cat([autoencoder.encode(scenes(domain, 64)[1]) for domain in shapes.DOMAINS])
    torch.testing.assert_close(
        latents.std((0, 2, 3)), torch.full((autoencoder.channels,), autoencoder.sigma_data), atol=0.15, rtol=0
    )
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(autoencoder.channels), atol=0.25, rtol=0)


def test_pictures_between_two_latents_are_pictures(autoencoder):
    """A network's latents are not exactly those of scenes: a little beside them has to decode to nearly the same."""
    _, pictures = scenes("synthetic", 64)
    latents = autoencoder.encode(pictures)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    moved = autoencoder.decode(latents + 0.05 * noise) - autoencoder.decode(latents)
    assert moved.abs().mean() < 0.02
