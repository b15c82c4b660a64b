"""What prepare.py asks is checked before any work, and what comes of it is never nothing in silence."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_sets import write_mds
from PIL import Image

from microdit.commands import prepare as command
from microdit.commands.prepare import NothingWrittenError, run_preparation
from microdit.data.stream.opening import open_mix
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
        "features": {},
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
        "aspect_ratio": 1.0,
        "near_duplicates": None,
        "look": False,
        "device": "cpu",
        "launcher": {"_target_": "microdit.data.prepare.launchers.ThisMachine"},
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
    for settings["held_out"] in (0.3, 0.0001):  # the second keeps nothing, which is the smaller mistake
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


def test_looking_writes_a_sheet_and_nothing_else(settings: dict[str, Any], tmp_path: Path) -> None:
    told = run({**settings, "look": True})
    assert "10 samples from 1 of 1 input shards" in told
    assert [path.name for path in (tmp_path / "data/mine").iterdir()] == ["look.png"]


def test_near_duplicates_are_filtered_and_counted(settings: dict[str, Any], tmp_path: Path) -> None:
    for number in (3, 7):
        pixels = np.random.default_rng(5).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(tmp_path / f"pictures/{number}.png")
    told = run({**settings, "held_out": 0, "near_duplicates": 4})
    assert "9 written, 1 filtered" in told
    assert "it looks like number 3 of pictures from 0 (7.png)" in told


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"captions": "first"}, "captions=first has no effect"),
        ({"crops": 2}, "crops=2 has no effect"),
        ({"caption_storage": "trimmed"}, "caption_storage=trimmed has no effect"),
        ({"near_duplicates": 3}, "near_duplicates has no effect"),
    ],
)
def test_choices_of_pictures_are_refused_for_latents(
    settings: dict[str, Any], tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said):
        run(settings | latents_in(tmp_path / "mds") | changed)


def latents_in(folder: Path) -> dict[str, Any]:
    """Settings for shards as micro_diffusion's preparation writes them."""
    chance = np.random.default_rng(0)
    samples = [
        {
            "caption": f"caption {number}".encode(),
            "caption_latents": chance.normal(size=(6, 8)).astype("<f2").tobytes(),
            "latents_8": chance.normal(size=(3, 8, 8)).astype("<f2").tobytes() if number else bytes(7),
        }
        for number in range(5)
    ]
    write_mds(folder, {"caption": "str", "caption_latents": "bytes", "latents_8": "bytes"}, samples)
    return {"source": {"_target_": "microdit.data.sources.mds.MdsSource", "path": str(folder)}, "held_out": 0}


def test_latents_of_others_are_taken_as_they_are_without_any_weights(settings: dict[str, Any], tmp_path: Path) -> None:
    told = run(settings | latents_in(tmp_path / "mds"))
    assert "4 written, 0 filtered, 1 broken" in told
    assert "which are no numbers in half precision" in told
    folder = tmp_path / "data/mine/train/latents-pixel-words-8px"
    mix = [{"name": "mine", "folder": str(folder), "weight": "size"}]
    stream = open_mix(mix, resolution_px=8, seed=0, autoencoder="pixel", text_encoder="words", shuffle=False)
    first = (tmp_path / "mds/shard.00000.mds").read_bytes().split(b"caption 1")[1]
    assert first.startswith(stream[0]["captions"].numpy().tobytes())
    assert first[6 * 8 * 2 :].startswith(stream[0]["latents"].numpy().tobytes())


@pytest.mark.parametrize("more", [{"crops": 2}, {"flips": True}])
def test_features_are_of_one_square_of_a_picture(settings: dict[str, Any], more: dict[str, Any]) -> None:
    features = {"_target_": "microdit.representation.features.ShapesPatchFeatures"}
    with pytest.raises(SettingsError, match="features are of one square of each picture: set crops=1"):
        run({**settings, "features": features, **more})
