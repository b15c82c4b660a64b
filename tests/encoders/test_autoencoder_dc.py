"""DC-AE as a small random AutoencoderDC of diffusers, saved and loaded from a folder, offline."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderDC
from small_autoencoders import SCALE, write_small_dc_ae

from microdit.encoders import Autoencoder, DCAutoencoder, KLAutoencoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_dc_ae(tmp_path_factory.mktemp("dc_ae"))


def build(folder, **changes):
    return DCAutoencoder(**({"weights": str(folder), "channels": 32, "scale": SCALE} | changes))


def pictures():
    return torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(1))


def test_latents_and_pictures_are_those_of_diffusers_and_scaled(folder):
    reference = AutoencoderDC.from_pretrained(folder, low_cpu_mem_usage=False).eval()
    autoencoder = build(folder)
    assert isinstance(autoencoder, Autoencoder)
    latents = autoencoder.encode(pictures())
    assert latents.shape == (2, 32, 2, 1)
    with torch.no_grad():
        torch.testing.assert_close(latents, reference.encode(2 * pictures() - 1).latent * SCALE)
        expected = (reference.decode(latents / SCALE).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(autoencoder.decode(latents), expected)


def test_sides_that_its_factor_does_not_divide_are_refused(folder):
    with pytest.raises(ValueError, match="multiples of 32"):
        build(folder).encode(torch.rand(1, 3, 48, 32))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"channels": 16}, r"says channels 32.*autoencoder\.channels=32"),
        ({"scale": 1.0}, r"says scale 0\.5.*autoencoder\.scale=0\.5"),
        ({"downscale": 8}, r"says downscale 32"),
    ],
)
def test_weights_of_another_autoencoder_than_declared_are_refused(folder, changes, told):
    with pytest.raises(ValueError, match=told):
        build(folder, **changes).load()


def test_an_autoencoder_of_another_kind_is_refused_by_its_name(folder):
    with pytest.raises(ValueError, match="describes a AutoencoderDC, and a AutoencoderKL is wanted"):
        KLAutoencoder(str(folder), channels=32, scale=SCALE, downscale=32).load()


def test_a_network_that_its_weights_cannot_fill_is_never_made(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text()) | {"encoder_layers_per_block": [99] * 6}
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="describes a network of"):
        build(tmp_path / "copy").load()


def test_missing_weights_are_told_with_how_to_point_to_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"autoencoder\.weights=FOLDER"):
        build(tmp_path).load()
