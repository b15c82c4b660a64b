"""Kept pictures may come from elsewhere: what is not as it was declared is named, and takes little memory."""

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from microdit.data.sources.captioned import CaptionedImage
from microdit.data.sources.tars import write_pictures
from microdit.evaluation import pictures as module
from microdit.evaluation.pictures import Making, Pictures, PicturesError, keep, kept_making
from microdit.files import DamagedFileError

PROMPTS = ["a", "b", "c"]
MAKING = {"prompts": PROMPTS, "sampling": {"seed": 0}, "network": "n", "label": []}


def encoded(width: int, height: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, form)
    return file.getvalue()


def kept(folder: Path, *files: bytes) -> Pictures:
    with (folder / "skills.tar").open("wb") as file:
        named = zip(files, PROMPTS, strict=False)
        write_pictures(file, (CaptionedImage(f"{i:06d}", one, [prompt]) for i, (one, prompt) in enumerate(named)))
    (folder / "skills.json").write_text(json.dumps(MAKING))
    making = kept_making(folder / "skills.tar")
    assert making is not None
    return Pictures(folder / "skills.tar", making, len(making.prompts))


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (encoded(8, 8)[:45], "000001"),
        (encoded(8, 8)[:50] + b"x" * 40, "000001"),
        (b"", "000001: no picture"),
        (encoded(8, 8, "JPEG"), "000001: no picture of a format that is read here"),
        (encoded(9, 8), "000001 is not of 8 x 8 px"),
        (encoded(20_000, 20_000, mode="1"), "000001: 20000 x 20000 px: more than"),
        (encoded(5_000, 1), "000001 has a side of more than 4096 px"),
    ],
    ids=["cut", "damaged", "empty", "jpeg", "other size", "huge", "long"],
)
def test_a_picture_that_is_none_is_named(tmp_path: Path, second: bytes, told: str) -> None:
    pictures = kept(tmp_path, encoded(8, 8), second, encoded(8, 8))
    with pytest.raises(PicturesError, match=rf"skills\.tar: {told}.*evaluate again"):
        pictures.all()


def test_fewer_pictures_than_prompts_are_told(tmp_path: Path) -> None:
    with pytest.raises(PicturesError, match="holds 2 pictures, not 3"):
        kept(tmp_path, encoded(8, 8), encoded(8, 8)).all()


def test_only_the_chosen_pictures_are_decoded_and_none_behind_them(tmp_path: Path) -> None:
    pictures = kept(tmp_path, b"broken", encoded(8, 8), b"broken")
    assert [pixels.shape for pixels in pictures.decoded([1])] == [(8, 8, 3)]


def test_a_batch_of_large_pictures_has_fewer_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = kept(tmp_path, *[encoded(8, 8)] * 3)
    assert [len(batch) for batch in pictures.batches()] == [3]
    monkeypatch.setattr(module, "NUMBERS_AT_ONCE", 2 * 8 * 8 * 3)
    assert [len(batch) for batch in pictures.batches()] == [2, 1]


def test_any_change_of_what_was_kept_is_told(tmp_path: Path) -> None:
    pictures = keep(tmp_path / "skills.tar", Making(**MAKING), iter([torch.rand(3, 3, 8, 8)]))
    assert kept_making(pictures.tar) == pictures.making
    whole = pictures.tar.read_bytes()
    chance = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        pictures.tar.write_bytes(damaged)
        with pytest.raises(PicturesError, match=r"skills\.tar is not as it was written.*evaluate again"):
            pictures.all()


def test_pictures_of_an_older_version_in_another_order_are_told(tmp_path: Path) -> None:
    pictures = kept(tmp_path, *[encoded(8, 8)] * 3)
    assert (pictures.making.tar, len(pictures.all())) == ("", 3)
    with pictures.tar.open("wb") as file:
        items = [CaptionedImage(f"{i:06d}", encoded(8, 8), [prompt]) for i, prompt in enumerate(PROMPTS)]
        write_pictures(file, reversed(items))
    with pytest.raises(PicturesError, match=r"000002 is a picture of another prompt than number 0\. .*evaluate again"):
        pictures.all()


def test_thirty_thousand_prompts_are_read(tmp_path: Path) -> None:
    pictures = kept(tmp_path, *[encoded(8, 8)] * 3)
    many = MAKING | {"prompts": ["a photograph of something, seen from somewhere, at some time of the day"] * 30_000}
    pictures.tar.with_suffix(".json").write_text(json.dumps(many))
    making = kept_making(pictures.tar)
    assert making is not None
    assert len(making.prompts) == 30_000


def test_a_folder_whose_name_is_a_pattern_is_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "{0..3}*"
    folder.mkdir()
    drawn = torch.rand(3, 3, 8, 8)
    pictures = keep(folder / "skills.tar", Making(**MAKING), iter([drawn]))
    torch.testing.assert_close(pictures.all(), drawn, atol=0.5 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "is damaged"),
        ({}, "also needs: prompts, sampling, network, label"),
        (MAKING | {"prompts": 3}, "prompts must be a list .*, got 3"),
        (MAKING | {"prompts": ["a", None]}, "prompts.1 must be a text, got None"),
        (MAKING | {"sampling": []}, "sampling must be settings by name"),
        (MAKING | {"sampling": {"seed": 10**400}}, "sampling.seed must be a text or a number"),
        (MAKING | {"sampling": {"a": {}}}, "sampling.a must be a text or a number"),
        (MAKING | {"more": 1}, "no setting 'more'"),
        (MAKING | {"prompts": []}, "names no prompt"),
    ],
)
def test_a_making_of_another_kind_is_named(tmp_path: Path, content: Any, told: str) -> None:
    (tmp_path / "skills.tar").touch()
    (tmp_path / "skills.json").write_text(json.dumps(content))
    with pytest.raises((DamagedFileError, PicturesError), match=rf"skills\.json.*{told}.* then evaluate again"):
        kept_making(tmp_path / "skills.tar")
