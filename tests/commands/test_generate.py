"""What can be known of a sheet before anything is drawn is checked before."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from microdit.commands import generate as command
from microdit.commands.generate import check_sheet, generate_grid
from microdit.kinds import SettingsError, check_arguments
from microdit.pipeline import LatentDiffusion, build_pipeline


@pytest.fixture
def given(pipeline_settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    pipeline = build_pipeline(pipeline_settings)
    monkeypatch.setattr(command, "open_pipeline", lambda *_: pipeline)
    unsaid = ("num_inference_steps", "guidance_scale", "sampler", "guidance_interval", "temperature", "precision")
    unsaid += ("guidance", "weaker")
    return {
        **dict.fromkeys(unsaid),
        "checkpoint": "runs/one",
        "prompts": ["a red circle"],
        "seed": 0,
        "weights": "ema",
        "autoencoder_weights": None,
        "text_encoder_weights": None,
        "batch_size": 8,
        "device": "cpu",
        "compile": False,
        "output": str(tmp_path / "out/sheet.png"),
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The prompts that were drawn."""
    asked: list[list[str]] = []

    def generate(pipeline: LatentDiffusion, prompts: list[str], **_: object) -> torch.Tensor:
        asked.append(prompts)
        return torch.zeros(len(prompts), 3, 16, 16)

    monkeypatch.setattr(LatentDiffusion, "generate", generate)
    return asked


def test_one_text_is_one_prompt(given: dict, drawn: list) -> None:
    assert generate_grid(**given | {"prompts": "a red circle"}).is_file()
    assert drawn == [["a red circle"]]


@pytest.mark.parametrize(
    ("output", "prompts", "said"),
    [
        ("sheet.webp", ["word " * 40_000], r"sheet of all prompts has .* ends at 16383 px.*output=.*sheet\.png"),
        ("sheet.jpg", ["word " * 200_000], r"ends at 65500 px"),
        ("sheet.gif", ["a"], r"name a \.png, \.jpg or \.webp file"),
        ("", ["a"], r"name a|is a folder"),
        ("sheet.png", [], "prompts is empty"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_it_is_drawn(
    given: dict, drawn: list, tmp_path: Path, output: str, prompts: list[str], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        generate_grid(**given | {"output": str(tmp_path / output), "prompts": prompts})
    assert drawn == []


@pytest.mark.parametrize("suffix", [".png", ".webp", ".jpg"])
def test_usual_sheets_fit_every_format(suffix: str) -> None:
    check_sheet(Path(f"a{suffix}"), (16_000, 16_000))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("prompts", [None, "a"], "prompts.* must be a text"),
        ("prompts", None, "prompts must be a text or a list"),
        ("prompts", [["a"]], "prompts.* must be a text"),
        ("prompts", {"a": 1}, "prompts must be a text or a list"),
        ("checkpoint", 7, "checkpoint must be a text, got 7"),
        ("checkpoint", None, "checkpoint must be a text"),
        ("output", None, "output must be a text"),
        ("batch_size", 0, "batch_size must be a whole number from 1"),
        ("seed", "x", "seed must be a whole number"),
        ("compile", "x", "compile must be true or false"),
        ("guidance_interval", "some", "guidance_interval must be"),
    ],
)
def test_a_setting_of_another_kind_is_named(given: dict, name: str, value: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_arguments(generate_grid, given | {name: value}, "")


@pytest.fixture(scope="module")
def saved(pipeline_settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    build_pipeline(pipeline_settings).save(folder)
    return folder


def drawn_to(checkpoint: Path, output: Path, **changes) -> Path:
    usual = dict.fromkeys(inspect.signature(generate_grid).parameters)
    told = {"prompts": ["a ring"], "num_inference_steps": 2, "weights": "ema", "batch_size": 1, "device": "cpu"}
    return generate_grid(**{**usual, **told, "checkpoint": str(checkpoint), "output": str(output), **changes})


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP")])
def test_a_picture_is_of_the_kind_that_its_name_says_and_takes_the_place_of_a_link(saved, tmp_path, name, kind):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / name).symlink_to("victim")
    (tmp_path / f".{name}.partial").symlink_to("victim")
    with Image.open(drawn_to(saved, tmp_path / name)) as picture:
        assert picture.format == kind
    assert (tmp_path / "victim").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "victim"])


def test_a_sheet_is_guided_away_from_a_weaker_checkpoint(saved, pipeline_settings, wake, tmp_path):
    weaker = build_pipeline(pipeline_settings)
    wake(weaker.dit)
    weaker.save(tmp_path / "weaker")
    told = {"guidance": "autoguidance", "weaker": str(tmp_path / "weaker"), "guidance_scale": 0.0, "seed": 1}
    sheets = [
        drawn_to(saved, tmp_path / "guided.png", **told),
        drawn_to(tmp_path / "weaker", tmp_path / "other_end.png", guidance_scale=1.0, seed=1),
        drawn_to(saved, tmp_path / "plain.png", guidance_scale=1.0, seed=1),
    ]
    guided, other_end, plain = (path.read_bytes() for path in sheets)
    assert guided == other_end != plain
