"""What `generate.py` writes, and where."""

import inspect
from pathlib import Path

import pytest
from PIL import Image

from microdit.commands.generate import generate_grid
from microdit.pipeline import build_pipeline


@pytest.fixture(scope="module")
def saved(pipeline_settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    build_pipeline(pipeline_settings).save(folder)
    return folder


def drawn(checkpoint: Path, output: Path, **changes) -> Path:
    usual = dict.fromkeys(inspect.signature(generate_grid).parameters)
    told = {"prompts": ["a ring"], "num_inference_steps": 2, "weights": "ema", "batch_size": 1, "device": "cpu"}
    return generate_grid(**{**usual, **told, "checkpoint": str(checkpoint), "output": str(output), **changes})


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP")])
def test_a_picture_is_of_the_kind_that_its_name_says_and_takes_the_place_of_a_link(saved, tmp_path, name, kind):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / name).symlink_to("victim")
    (tmp_path / f".{name}.partial").symlink_to("victim")
    with Image.open(drawn(saved, tmp_path / name)) as picture:
        assert picture.format == kind
    assert (tmp_path / "victim").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "victim"])
