"""Encoders of other projects, as small random instances of their own classes: pictures and captions are prepared, two
steps are trained, a picture is drawn, and all of it knows where a caption ends."""

import io
import tarfile

import numpy as np
import pytest
import torch
from compositions import plain
from rich.console import Console
from run_fixtures import SMALL
from small_autoencoders import SCALE, write_small_dc_ae, write_small_flux_vae
from small_language_models import CHANNELS, write_small_language_model

from microdit.pipeline import LatentDiffusion
from microdit.training.run import train
from microdit.training.settings import training_settings

ROADS = {
    "dc_ae_f32": ("qwen3_0_6b", "qwen3", write_small_dc_ae, [f"autoencoder.scale={SCALE}", "model.patch_size=1"]),
    "flux": ("t5gemma", "t5gemma", write_small_flux_vae, []),
    "e2e_vae": ("siglip2", "siglip", write_small_flux_vae, []),
}
LENGTH = 12


@pytest.mark.parametrize("autoencoder", ROADS)
def test_from_pictures_to_pictures(tmp_path, autoencoder):
    text_encoder, kind, write, told = ROADS[autoencoder]
    for folder in ("autoencoder", "text"):
        (tmp_path / folder).mkdir()
    weights = write(tmp_path / "autoencoder"), write_small_language_model(tmp_path / "text", kind)
    config = plain(
        *[override for override in SMALL if "resolution_px" not in override],
        *(f"autoencoder={autoencoder}", f"autoencoder.weights={weights[0]}", *told),
        *(f"text_encoder={text_encoder}", f"text_encoder.weights={weights[1]}", "text_encoder.dtype=float32"),
        *(f"text_encoder.channels={CHANNELS}", f"text_encoder.length={LENGTH}"),
        *("resolution_stage.resolution_px=64", "trainer.max_steps=2", "callbacks.samples.prompts=[]"),
        f"paths.data_root={tmp_path / 'data'}",
    )
    settings = training_settings(config, tmp_path / "run", {"autoencoder": autoencoder, "text_encoder": text_encoder})
    record = train(settings, Console(quiet=True))
    assert np.isfinite(record["validation/loss"])

    pipeline = LatentDiffusion.load(tmp_path / "run")
    assert pipeline.dit.masks_padding
    (picture,) = pipeline.generate("a red ball", seed=0)
    assert picture.shape == (3, 64, 64)
    assert picture.isfinite().all()

    # What a caption leaves free of its positions is zeros in the shards, which the network takes for padding.
    with tarfile.open(next((tmp_path / "data").glob("**/train/latents-*/*.tar"))) as tar:
        name = next(name for name in tar.getnames() if "caption" in name and name.endswith(".npy"))
        caption = np.load(io.BytesIO(tar.extractfile(name).read()))
    present = torch.from_numpy(caption).any(dim=-1)
    assert caption.shape == (LENGTH, CHANNELS)
    assert 0 < present.sum() <= LENGTH
    assert torch.equal(present, torch.arange(LENGTH) < present.sum())
