import json
import shutil
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import nn

from microdit.encoders import Autoencoder, KLAutoencoder

SCALE = 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small random AutoencoderKL with 2 latent channels and 4 pixels per latent, as diffusers saves it."""
    torch.manual_seed(0)
    model = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=2,
        norm_num_groups=4,
        scaling_factor=SCALE,
    )
    path = tmp_path_factory.mktemp("autoencoder")
    model.save_pretrained(path)
    return path


def build(folder, **changes):
    return KLAutoencoder(**({"weights": str(folder), "channels": 2, "scale": SCALE, "downscale": 4} | changes))


def images(n=2, side=16):
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_latents_are_the_scaled_mode_of_what_diffusers_gives(folder):
    reference = AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False).eval()
    with torch.no_grad():
        expected = reference.encode(2 * images() - 1).latent_dist.mode() * SCALE
    latents = build(folder).encode(images())
    assert latents.shape == (2, 2, 4, 4)
    torch.testing.assert_close(latents, expected)


def test_decoding_undoes_the_scaling_and_gives_images(folder):
    reference = AutoencoderKL.from_pretrained(folder, local_files_only=True, low_cpu_mem_usage=False).eval()
    latents = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = (reference.decode(latents / SCALE).sample / 2 + 0.5).clamp(0, 1)
    decoded = build(folder).decode(latents)
    assert decoded.shape == (2, 3, 16, 16)
    torch.testing.assert_close(decoded, expected)


def test_latents_that_are_no_numbers_are_told_from_an_overflow(folder):
    latents = torch.full((1, 2, 4, 4), torch.nan)
    with pytest.raises(FloatingPointError, match=r"latents that are no finite numbers: .* another checkpoint"):
        build(folder).decode(latents)


def test_a_shift_is_taken_off_before_scaling_and_put_back_after(folder, tmp_path):
    shifted = tmp_path / "shifted"
    shifted.mkdir()
    for file in folder.iterdir():
        (shifted / file.name).write_bytes(file.read_bytes())
    config = json.loads((shifted / "config.json").read_text())
    (shifted / "config.json").write_text(json.dumps(config | {"shift_factor": 0.5}))
    autoencoder = build(shifted, shift=0.5)
    plain = build(folder)
    torch.testing.assert_close(autoencoder.encode(images()), plain.encode(images()) - 0.5 * SCALE)
    latents = autoencoder.encode(images())
    torch.testing.assert_close(autoencoder.decode(latents), plain.decode(latents + 0.5 * SCALE))


def test_pixels_become_channels_where_the_weights_take_more_than_three(tmp_path):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    model = AutoencoderKL(12, 12, **blocks, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4).eval()
    model.register_to_config(scaling_factor=SCALE)
    model.save_pretrained(tmp_path)
    autoencoder = build(tmp_path)  # half the size by channels, half by the network
    with torch.no_grad():
        expected = model.encode(nn.functional.pixel_unshuffle(2 * images() - 1, 2)).latent_dist.mode() * SCALE
        decoded = nn.functional.pixel_shuffle(model.decode(expected / SCALE).sample, 2) / 2 + 0.5
    torch.testing.assert_close(autoencoder.encode(images()), expected)
    torch.testing.assert_close(autoencoder.decode(expected), decoded.clamp(0, 1))
    with pytest.raises(ValueError, match="says downscale 4"):
        build(tmp_path, downscale=8).load()


def test_encoding_is_repeatable_and_sampling_is_not(folder):
    autoencoder = build(folder)
    assert torch.equal(autoencoder.encode(images()), autoencoder.encode(images()))
    autoencoder = build(folder, sample=True)
    assert not torch.equal(autoencoder.encode(images()), autoencoder.encode(images()))
    torch.manual_seed(3)
    first = autoencoder.encode(images())
    torch.manual_seed(3)
    assert torch.equal(first, autoencoder.encode(images()))


def test_a_lower_precision_gives_nearly_the_same_float32_latents(folder):
    exact, coarse = build(folder).encode(images()), build(folder, dtype="bfloat16").encode(images())
    assert coarse.dtype == torch.float32
    assert not torch.equal(exact, coarse)
    torch.testing.assert_close(exact, coarse, atol=0.05, rtol=0.1)


def test_autocast_around_it_changes_nothing(folder):
    autoencoder = build(folder)
    plain = autoencoder.encode(images())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain, autoencoder.encode(images()))


def test_construction_needs_no_weights_and_first_use_does():
    autoencoder = KLAutoencoder(weights="./absent", channels=4, scale=0.13025)
    assert isinstance(autoencoder, Autoencoder)
    assert (autoencoder.channels, autoencoder.downscale, autoencoder.sigma_data) == (4, 8, 0.9)
    with pytest.raises(FileNotFoundError, match=r"autoencoder\.weights=FOLDER"):
        autoencoder.encode(images())


def test_a_parent_neither_trains_nor_saves_it(folder):
    parent = nn.ModuleDict({"autoencoder": build(folder)})
    parent["autoencoder"].load()
    assert not list(parent.parameters())
    assert not parent.state_dict()
    assert not parent["autoencoder"].encode(images()).requires_grad


@pytest.mark.parametrize("change", [{"channels": 4}, {"scale": 0.13025}, {"downscale": 8}, {"shift": 0.1}])
def test_weights_that_are_not_as_declared_are_refused(folder, change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"says {name} .* declares .* autoencoder\.{name}="):
        build(folder, **change).load()


def test_a_folder_with_broken_weights_is_refused_by_name(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=str(tmp_path)):
        build(tmp_path).load()


def test_random_weights_are_never_used_for_missing_ones(folder, tmp_path):
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    del weights["decoder.conv_out.weight"]
    save_file(weights, tmp_path / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, decoder\.conv_out\.weight"):
        build(tmp_path).load()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"block_out_channels": [16384] * 3}, r"a network of [\d,]+ numbers, and its weights have [\d,]+ bytes"),
        ({"layers_per_block": 10**9}, r"layers_per_block must be a whole number from 1 to 100"),
        ({"block_out_channels": [8] * 10**4}, r"block_out_channels must be .*, 1 to 32 of them"),
    ],
)
def test_a_config_of_a_larger_network_than_its_weights_is_refused_before_it_is_made(folder, tmp_path, changes, told):
    shutil.copytree(folder, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "changed" / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=told):
        build(tmp_path / "changed").load()


def test_image_sides_must_divide(folder):
    with pytest.raises(ValueError, match="multiples of 4, got 16 x 18"):
        build(folder).encode(torch.rand(1, 3, 16, 18))


def test_an_overflow_stops_with_a_sentence(folder):
    with pytest.raises(FloatingPointError, match=r"autoencoder\.dtype=bfloat16"):
        build(folder).decode(torch.full((1, 2, 4, 4), 3e38))


def test_nothing_is_said_of_what_diffusers_might_use_and_nothing_here_does() -> None:
    code = "import microdit.encoders.autoencoder_kl; import diffusers.models.autoencoders.autoencoder_kl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert (done.stdout, done.stderr) == ("", "")
