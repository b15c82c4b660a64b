"""A small trained-looking pipeline of 16 px shapes, as evaluation meets it."""

from collections.abc import Callable

import pytest
import torch

from microdit.pipeline import LatentDiffusion, build_pipeline


@pytest.fixture(scope="session")
def make_pipeline(small_settings, wake) -> Callable[..., LatentDiffusion]:
    """make_pipeline(fresh=False): 16 px, weights in which everything matters, or the initial ones."""
    elsewhere = ("in_channels", "caption_channels", "use_patch_mixer")
    model = {k: list(v) if isinstance(v, tuple) else v for k, v in small_settings.items() if k not in elsewhere}
    settings = {
        "model": {**model, "input_size": 16},
        "token_path": {"_target_": "microdit.masking.deferred.Deferred"},
        "objective": {"_target_": "microdit.objectives.edm.EDM"},
        "autoencoder": {"_target_": "microdit.encoders.pixel.PixelAutoencoder", "sigma_data": 0.5},
        "text_encoder": {"_target_": "microdit.encoders.words.WordsTextEncoder", "channels": 16, "length": 24},
    }

    def make(fresh: bool = False) -> LatentDiffusion:
        torch.manual_seed(0)
        pipeline = build_pipeline(settings)
        if not fresh:
            wake(pipeline.dit)
        return pipeline

    return make


@pytest.fixture
def pipeline(make_pipeline) -> LatentDiffusion:
    return make_pipeline()
