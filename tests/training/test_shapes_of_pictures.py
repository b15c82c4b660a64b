"""Training on pictures of several shapes, from files to the last bit of a resumed run, and what it costs."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from compositions import plain
from PIL import Image
from rich.console import Console
from run_fixtures import SMALL

from microdit.checkpoints.reading import latest_checkpoint, network_weights
from microdit.commands.prepare import run_preparation
from microdit.cost.flops import training_flops_per_image
from microdit.data.shards.description import MismatchError
from microdit.pipeline import LatentDiffusion, build_pipeline
from microdit.runs.folder import checkpoints_of
from microdit.training.data import open_data, validation_batches
from microdit.training.run import network_settings, train
from microdit.training.settings import TrainingSettings, training_settings

ENCODERS = {"autoencoder": "pixel", "text_encoder": "words"}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures, a third of them squares, a third wide, a third high, prepared as the command line does."""
    root = tmp_path_factory.mktemp("several")
    (root / "pictures").mkdir()
    chance = np.random.default_rng(0)
    for number in range(60):
        size = [(24, 24), (20, 34), (31, 24)][number % 3]
        pixels = chance.integers(256, size=(*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"pictures/{number:02d}.png")
        (root / f"pictures/{number:02d}.txt").write_text("a red circle")
    overrides = ("source=folder", f"source.path={root / 'pictures'}", "resolutions_px=[16]", "held_out=0.2")
    places = (f"paths.data_root={root / 'data'}", "aspect_ratio=2")
    run_preparation(plain(*overrides, *places, config="prepare"), "pixel", "words")
    return root / "data"


def settings(data_root: Path, output: Path, *overrides: str) -> TrainingSettings:
    usual = [one for one in SMALL if not one.startswith("data_mix.")]
    config = plain(*usual, "data_mix=my_pictures", f"paths.data_root={data_root}", *overrides)
    return training_settings(config, output, ENCODERS)


def losses(run: Path) -> list[str]:
    with (run / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]]


def quiet_train(settings: TrainingSettings, checkpoint: Path | None = None) -> dict:
    return train(settings, Console(quiet=True), checkpoint)


def test_a_run_that_is_resumed_in_the_middle_repeats_the_whole_one(data_root: Path, tmp_path: Path) -> None:
    whole = quiet_train(settings(data_root, tmp_path / "whole"))
    quiet_train(settings(data_root, tmp_path / "cut"))
    for late in checkpoints_of(tmp_path / "cut")[1:]:
        late.unlink()  # as if it had died after the first checkpoint
    resumed = quiet_train(settings(data_root, tmp_path / "cut"), latest_checkpoint(tmp_path / "cut"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == 8
    assert resumed["validation/loss"] == whole["validation/loss"]
    a, b = (network_weights(checkpoints_of(tmp_path / name)[-1], "raw") for name in ("whole", "cut"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def pipeline(data_root: Path) -> LatentDiffusion:
    return build_pipeline(network_settings(settings(data_root, Path("run"))))


def test_flops_are_the_mean_of_the_shapes_in_the_mix(
    data_root: Path, pipeline: LatentDiffusion, tmp_path: Path
) -> None:
    stream, _ = open_data(settings(data_root, tmp_path), pipeline)
    assert len(stream.shares) == 3
    each = {shape: training_flops_per_image(pipeline.dit, 0.5, 6, {shape: 1.0}) for shape in [*stream.shares, (16, 16)]}
    mean = sum(share * each[shape] for shape, share in stream.shares.items())
    assert training_flops_per_image(pipeline.dit, 0.5, 6, stream.shares) == pytest.approx(mean, abs=1)
    assert training_flops_per_image(pipeline.dit, 0.5, 6) == each[(16, 16)] == each[(3, 16, 16)]
    assert len({*each.values()}) > 1


@pytest.mark.parametrize("masking", ["none", "naive", "deferred", "maskdit", "tread", "sprint"])
def test_every_masking_trains_on_every_shape(data_root: Path, masking: str) -> None:
    squares = ["masking.square_size=null"] if masking == "sprint" else []
    ratio = 0.0 if masking == "none" else 0.5
    chosen = [f"masking={masking}", "model.depth=4", *squares, *(["mask_ratio=none"] if masking == "none" else [])]
    network = build_pipeline(network_settings(settings(data_root, Path("run"), *chosen))).dit
    costs = [training_flops_per_image(network, ratio, 6, {shape: 1.0}) for shape in ((14, 18), (18, 14), (12, 20))]
    assert costs[0] == costs[1] > costs[2] > 0


def test_pictures_of_a_shape_have_to_be_whole_patches(data_root: Path, tmp_path: Path) -> None:
    config = settings(data_root, tmp_path, "variation.patch_size=4")
    with pytest.raises(
        MismatchError, match=r"latents of 18 x 14 in the mix cannot be cut into patches of 4: prepare the data"
    ):
        open_data(config, build_pipeline(network_settings(config)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("starts", [(0,), (0, 3, 4, 11)])
def test_ranks_validate_each_sample_once_in_batches_of_one_shape(starts: tuple[int, ...], world_size: int) -> None:
    by_rank = [validation_batches(17, 4, rank, world_size, starts) for rank in range(world_size)]
    assert len({len(batches) for batches in by_rank}) == 1
    own = [p for rank, batches in enumerate(by_rank) for b in batches for p in b if p % world_size == rank]
    assert sorted(own) == [*range(17)]
    for batch in (batch for batches in by_rank for batch in batches):
        assert len({sum(position >= start for start in starts) for position in batch}) == 1
