"""A small trained-looking pipeline of 16 px shapes, as evaluation meets it."""

from collections.abc import Callable

import pytest
import torch

from microdit.pipeline import LatentDiffusion, build_pipeline


@pytest.fixture(scope="session")
def make_pipeline(pipeline_settings, wake) -> Callable[..., LatentDiffusion]:
    """make_pipeline(fresh=False): 16 px, weights in which everything matters, or the initial ones."""
    settings = {
        **pipeline_settings,
        "model": {**pipeline_settings["model"], "input_size": 16},
        "text_encoder": {**pipeline_settings["text_encoder"], "length": 24},
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
