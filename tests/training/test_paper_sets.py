"""The paper's six sets: from files as they are downloaded to training, with encoders of the real classes, small and of
random weights, and the mixes of conf/ word by word."""

import inspect
from pathlib import Path

import pytest
import torch
from compositions import plain
from diffusers import AutoencoderKL
from made_sets import COUNT, SETS
from PIL import Image
from rich.console import Console
from run_fixtures import SMALL
from small_clip import write_small_clip

from microdit.commands.compose import bundles_in_order
from microdit.commands.generate import generate_grid
from microdit.commands.prepare import run_preparation
from microdit.training.run import train
from microdit.training.settings import training_settings

PAPER = {"cc12m": "cc12m", "sa1b": "sa1b", "textcaps": "textcaps", "journeydb": "journeydb"}
PAPER |= {"diffusiondb": "diffusiondb", "coco_2014": "coco"}
ENCODERS = {"autoencoder": "sdxl", "text_encoder": "dfn_clip"}


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Settings of the paper's encoders whose weights are small and random."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("encoders")
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.13025,
    ).save_pretrained(folder / "vae")
    (folder / "clip").mkdir()
    write_small_clip(folder / "clip")
    weights = [f"autoencoder.weights={folder / 'vae'}", f"text_encoder.weights={folder / 'clip'}"]
    return ["autoencoder=sdxl", "text_encoder=dfn_clip", *weights, "text_encoder.channels=32"]


@pytest.fixture(scope="module")
def prepared(encoders: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with all six, each prepared as `python prepare.py source=NAME ...` does."""
    root = tmp_path_factory.mktemp("sets")
    for name in PAPER:
        overrides = SETS[name](root / name)
        small = ["resolutions_px=[32]", "min_side_px=32", f"paths.data_root={root / 'data'}"]
        told = run_preparation(plain(f"source={name}", *overrides, *encoders, *small, config="prepare"), **NAMES)
        assert f" {COUNT} written, {name == 'diffusiondb':d} filtered, 0 broken" in told.splitlines()[0]
    return root / "data"


NAMES = {"autoencoder_name": "sdxl", "text_encoder_name": "dfn_clip"}


def two_steps(prepared: Path, encoders: list[str], output: Path, *overrides: str) -> float:
    """The loss of the last of two steps."""
    places = [f"paths.data_root={prepared}", "resolution_stage.resolution_px=32", "trainer.max_steps=2"]
    short = ["trainer.validate_every_n_steps=2", "trainer.checkpoint_every_n_steps=2"]
    usual = [one for one in SMALL if not one.startswith(("data_mix.", "resolution_stage.resolution_px", "callbacks."))]
    drawn = ["callbacks=photo_prompts", "callbacks.samples.prompts=[a boat]", "callbacks.samples.every_n_steps=2"]
    settings = plain(*bundles_in_order([*usual, *overrides, *encoders, *places, *short, *drawn]))
    return train(training_settings(settings, output, ENCODERS), Console(quiet=True))["train/loss"]


@pytest.mark.parametrize("name", PAPER.values())
def test_each_set_trains_and_its_run_draws(prepared: Path, encoders: list[str], tmp_path: Path, name: str) -> None:
    split = "validation" if name == "coco" else "train"
    source = f"{{name: {name}, folder: {prepared / name / split}}}"
    mix = ["data_mix=my_pictures", f"data_mix.sources=[{source}]", f"data_mix.validation=[{source}]"]
    assert two_steps(prepared, encoders, tmp_path, "+scale=tiny", "trainer=cpu", *mix) > 0
    given = dict.fromkeys(inspect.signature(generate_grid).parameters) | plain(config="generate")
    told = {"checkpoint": str(tmp_path), "prompts": ["a boat"], "output": str(tmp_path / "boat.png")}
    drawn = generate_grid(
        **{key: value for key, value in (given | told | {"image_size": [32, 48]}).items() if key != "trust"}
    )
    with Image.open(drawn) as sheet:
        assert sheet.width > sheet.height  # one picture of 48 x 32, with its prompt


@pytest.mark.parametrize("mix", ["real_22m", "real_synthetic_37m"])
def test_the_papers_mixes_find_what_the_sources_write(
    prepared: Path, encoders: list[str], tmp_path: Path, mix: str
) -> None:
    assert two_steps(prepared, encoders, tmp_path, f"data_mix={mix}") > 0
