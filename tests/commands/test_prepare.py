"""What prepare.py asks is checked before any work, and what comes of it is never nothing in silence."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from microdit.commands import prepare as command
from microdit.commands.prepare import NothingWrittenError, run_preparation
from microdit.kinds import SettingsError


def picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Of a folder of ten captioned pictures."""
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        (tmp_path / f"pictures/{number}.png").write_bytes(picture())
        (tmp_path / f"pictures/{number}.txt").write_text("a caption")
    return {
        "source": {
            "_target_": "microdit.data.sources.folder.FolderSource",
            "path": str(tmp_path / "pictures"),
        },
        "autoencoder": {"_target_": "microdit.encoders.PixelAutoencoder".replace("encoders.", "encoders.pixel.")},
        "text_encoder": {"_target_": "microdit.encoders.words.WordsTextEncoder", "channels": 8, "length": 6},
        "name": "mine",
        "split": "train",
        "held_out": 0.3,
        "resolutions_px": [8],
        "min_side_px": None,
        "caption_storage": "full",
        "batch_size": 4,
        "decode_threads": 1,
        "captions": "all",
        "clean_captions": [],
        "transparency": "white",
        "crops": 1,
        "flips": False,
        "device": "cpu",
        "shard_of": "1/1",
        "refresh": False,
        "index": None,
        "on_corrupt": "error",
        "paths": {"data_root": str(tmp_path / "data")},
    }


def run(settings: dict[str, Any]) -> str:
    return run_preparation(settings, "pixel", "words")


def test_the_closing_count_is_of_both_sides(settings: dict[str, Any]) -> None:
    told = run(settings)
    counts = [line for line in told.splitlines() if " found, " in line]
    assert len(counts) == 2
    assert sum(int(line.partition(": ")[2].partition(" ")[0]) for line in counts) == 10


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("name", 2024, "name must be a text, .*got 2024"),
        ("name", None, "name must be a text"),
        ("name", ["a"], "name must be a text"),
        ("name", "../elsewhere", "is no folder in"),
        ("split", "/train", "is no folder in"),
        ("held_out", "some", "held_out must be a number from 0"),
        ("held_out", 1.0, "held_out must be a number from 0"),
        ("held_out", None, "held_out must be a number"),
        ("resolutions_px", [[8]], r"resolutions_px\.0 must be a whole number|resolutions_px must be a list"),
        ("batch_size", "many", "batch_size must be a whole number"),
        ("min_side_px", -1, "min_side_px must be"),
        ("device", 0, "device must be a text"),
        ("index", 5, "index must be a text or null"),
        ("on_corrupt", "stop", "on_corrupt must be error or skip"),
        ("refresh", "yes", "refresh must be true or false"),
        ("shard_of", "3", "shard_of must be JOB/JOBS"),
        ("source.path", 5, "path must be a text, got 5"),
        ("source.path", None, "path must be a text"),
        ("source.path", [["a"]], "path must be a text"),
        ("source.shard_size", 0, "shard_size must be at least 1"),
        ("source.caption_column", 7, "caption_column must be a text or a list whose values are each a text or null"),
        ("source.caption_columm", "x", "has no setting 'caption_columm'; did you mean 'caption_column'"),
    ],
)
def test_a_setting_of_another_kind_is_named_before_anything_is_made(
    settings: dict[str, Any], tmp_path: Path, key: str, value: Any, said: str
) -> None:
    group, _, name = key.rpartition(".")
    (settings[group] if group else settings)[name] = value
    with pytest.raises((SettingsError, ValueError), match=said):
        run(settings)
    assert not (tmp_path / "data").exists()


def without_captions(folder: Path) -> None:
    for path in folder.glob("*.txt"):
        path.unlink()


def too_small(folder: Path) -> None:
    for path in folder.glob("*.png"):
        Image.new("RGB", (2, 2)).save(path)


@pytest.mark.parametrize(("spoil", "reason"), [(without_captions, "no caption"), (too_small, "a side shorter than 8")])
def test_nothing_written_is_a_mistake_and_mended_the_same_command_does_it(
    settings: dict[str, Any], tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(tmp_path / "pictures")
    with pytest.raises(NothingWrittenError, match=rf"(?s)nothing was written into .*mine/train and .*{reason}"):
        run(settings)
    for number in range(10):
        (tmp_path / f"pictures/{number}.png").write_bytes(picture())
        (tmp_path / f"pictures/{number}.txt").write_text("a caption")
    assert "10 written" in run({**settings, "held_out": 0, "split": "all"})
    assert "written" in run(settings)


def test_a_side_that_only_reading_shows_to_be_empty_is_a_mistake(settings: dict[str, Any], tmp_path: Path) -> None:
    without_captions(tmp_path / "pictures")
    (tmp_path / "pictures/1.txt").write_text("the only one")
    with pytest.raises(NothingWrittenError, match=r"(?s)nothing was written into .*held_out=0 for no validation"):
        run(settings)


def test_a_share_that_keeps_nothing_is_refused_first_and_what_it_says_works(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    settings["held_out"] = 0.0001
    with pytest.raises(SettingsError, match=r"of 10 pictures none is kept for validation.*Type held_out=\d"):
        run(settings)
    assert not (tmp_path / "data").exists()


def test_encoders_without_their_weights_are_told_before_a_picture_is_read(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "prepare", lambda *_: pytest.fail("it began"))
    (tmp_path / "model/vae").mkdir(parents=True)
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / "model/vae" / name).write_text("{}")
    settings["autoencoder"] = {
        "_target_": "microdit.encoders.autoencoder_kl.KLAutoencoder",
        "weights": str(tmp_path / "model"),
        "channels": 4,
        "scale": 0.13,
    }
    with pytest.raises(FileNotFoundError, match=r"model/vae has them: autoencoder\.weights=.*model/vae"):
        run(settings)


def test_a_corrected_path_is_not_refused_because_the_wrong_one_was_tried(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong/a.png").write_bytes(picture())
    (tmp_path / "wrong/b.png").write_bytes(picture())
    wrong = {**settings, "held_out": 0, "source": {**settings["source"], "path": str(tmp_path / "wrong")}}
    with pytest.raises(NothingWrittenError):
        run(wrong)
    assert "10 written" in run({**settings, "held_out": 0})
    plan = tmp_path / "data/mine/train/latents-pixel-words-8px/plan.json"
    assert json.loads(plan.read_text())["source"]["path"] == str(tmp_path / "pictures")
