"""A run of training small enough to be repeated in every test: 16 px shapes, a network of two narrow blocks."""

from pathlib import Path

import hydra
import pytest
from omegaconf import OmegaConf

import microdit.cli  # noqa: F401 - registers the resolver that conf/config.yaml uses
from microdit.training.settings import TrainingSettings, training_settings

CONF = str(Path(__file__).parents[2] / "conf")
SMALL = [
    "name=test",
    "model.dim=32",
    "model.depth=2",
    "model.head_dim=16",
    "model.patch_mixer_dim=16",
    "model.patch_mixer_depth=1",
    "moe.num_experts=2",
    "resolution_stage.resolution_px=16",
    "resolution_stage.global_batch_size=4",
    "resolution_stage.warmup_steps=2",
    "data_mix.embedded.counts={train: 24, validation: 4}",
    "trainer.validation_batch_size=4",
    "trainer.max_steps=8",
    "trainer.validate_every_n_steps=4",
    "trainer.checkpoint_every_n_steps=3",
    "callbacks.samples.every_n_steps=8",
    "callbacks.samples.num_inference_steps=2",
    "callbacks.samples.prompts=[a red circle]",
    "metrics=none",
]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def small_settings(data_root, tmp_path):
    """Settings of a small run: small_settings("mask_ratio=p50", output=folder)."""

    def compose(*overrides: str, output: Path = tmp_path / "run") -> TrainingSettings:
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            config = hydra.compose("config", [*SMALL, f"paths.data_root={data_root}", *overrides])
        plain = OmegaConf.to_container(config, resolve=True)
        return training_settings(plain, output, {"autoencoder": "pixel", "text_encoder": "words"})

    return compose
