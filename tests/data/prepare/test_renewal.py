"""What was made of files that have changed since is told, and made anew where that is asked for."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from microdit.data.prepare.convert import prepare
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import PlanChangedError, Recipe
from microdit.data.prepare.report import Summary
from microdit.data.sources.folder import FolderSource
from microdit.encoders import PixelAutoencoder, WordsTextEncoder

ENCODERS = Encoders(PixelAutoencoder(), WordsTextEncoder(channels=8, length=6), "pixel", "words")


def picture(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (grey, grey, grey)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        add(folder, number)
    return folder


def add(folder: Path, number: int, caption: str = "as it was") -> None:
    (folder / f"{number}.png").write_bytes(picture(grey=number))
    (folder / f"{number}.txt").write_text(caption)


def run(pictures: Path, refresh: bool = False, side: int = 8, **source: str) -> Summary:
    settings = {"path": str(pictures), "shard_size": 2} | source
    root = pictures.parent / "data/mine/train"
    return prepare(FolderSource(**settings), root, ENCODERS, Recipe([side]), refresh=refresh)  # type: ignore[arg-type]


def contents(summary: Summary) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in summary.folder.rglob("*") if path.is_file()}


def correct_a_caption(pictures: Path) -> None:
    (pictures / "3.txt").write_text("corrected")


def replace_a_picture(pictures: Path) -> None:
    (pictures / "3.png").write_bytes(picture(grey=200))


def lose_a_caption(pictures: Path) -> None:
    (pictures / "3.txt").unlink()


@pytest.mark.parametrize("change", [correct_a_caption, replace_a_picture, lose_a_caption])
def test_a_changed_file_is_told_and_its_shard_alone_made_anew(
    pictures: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    made = run(pictures)
    before = {path.name: path.stat().st_mtime_ns for path in made.folder.glob("*.tar")}
    change(pictures)
    kept = contents(made)
    with pytest.raises(PlanChangedError, match=r"files of 1 of 3 input shards changed .*pictures from 2.*refresh=true"):
        run(pictures)
    assert contents(made) == kept
    assert run(pictures, refresh=True).images == 2
    after = {path.name: path.stat().st_mtime_ns for path in made.folder.glob("*.tar")}
    assert [name for name in before if before[name] != after[name]] == ["00001.tar"]
    refreshed = contents(made)
    other = prepare(FolderSource(str(pictures), shard_size=2), tmp_path / "anew/mine/train", ENCODERS, Recipe([8]))
    assert refreshed == contents(other)
    assert run(pictures).images == 0


def test_pictures_that_came_and_went_are_followed(pictures: Path) -> None:
    run(pictures)
    add(pictures, 6)
    with pytest.raises(PlanChangedError, match=r"source\.pictures was 6, is now 7.*refresh=true"):
        run(pictures)
    grown = run(pictures, refresh=True)
    assert (grown.written, grown.images) == (7, 1)
    for number in (0, 1, 2, 3, 4):
        (pictures / f"{number}.png").unlink()
        (pictures / f"{number}.txt").unlink()
    shrunk = run(pictures, refresh=True)
    assert shrunk.written == 2
    assert [path.name for path in sorted(shrunk.folder.glob("*.tar"))] == ["00000.tar"]
    assert json.loads((shrunk.folder / "dataset.json").read_text())["samples"] == 2


def test_other_settings_are_not_a_matter_of_refreshing(pictures: Path) -> None:
    run(pictures)
    with pytest.raises(PlanChangedError, match=r"caption_suffix was null"):
        run(pictures, refresh=True, caption_suffix=".caption")


@pytest.mark.parametrize("begun", ["nothing", "broken"])
def test_a_folder_that_holds_no_sample_yet_is_begun_anew_with_other_settings(pictures: Path, begun: str) -> None:
    if begun == "nothing":  # it ended before the first shard
        run(pictures)
        for path in (pictures.parent / "data").rglob("*.tar"):
            path.unlink()
    else:
        assert run(pictures, caption_suffix=".caption").written == 0
    made = run(pictures, path=str(pictures), shard_size=3)  # type: ignore[arg-type]
    assert (made.written, made.shards) == (6, 2)
    assert len([*made.folder.glob("*.tar")]) == 2


def test_files_mended_where_nothing_was_written_are_read_by_the_same_command(pictures: Path) -> None:
    for number in range(6):
        (pictures / f"{number}.txt").unlink()
    assert run(pictures).written == 0
    for number in range(6):
        add(pictures, number)
    assert run(pictures).written == 6


def test_what_is_ignored_later_on_is_counted_without_reading_anything_again(pictures: Path) -> None:
    run(pictures)
    (pictures / "notes.md").write_text("")
    again = run(pictures)
    assert (again.images, again.ignored) == (0, 1)
    assert "notes.md" in (again.folder / "rejects.csv").read_text()


def test_data_prepared_before_states_were_kept_is_not_told_to_be_stale(pictures: Path) -> None:
    made = run(pictures)
    for path in made.folder.glob("index/*.json"):
        report = json.loads(path.read_text())
        del report["state"], report["captions_cut"]
        path.write_text(json.dumps(report))
    os.utime(pictures / "3.txt", ns=(1, 1))
    assert run(pictures).written == 6
