"""A folder tells of everything in it, and looks around where a caption is missing."""

import json
import unicodedata
from pathlib import Path

import pytest

from microdit.data.sources.captioned import CaptionedImage, Found, Ignored, Unreadable
from microdit.data.sources.folder import FolderSource
from microdit.data.sources.tars import TarSource
from microdit.kinds import SettingsError


def made(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, encoding="utf-8")
    return root


def everything(source: FolderSource) -> dict[str, Found]:
    read = [item for shard in range(len(source.shards())) for item in source.read(shard)]
    found = {item.key: item for item in [*read, *source.beside()]}
    assert len(found) == len(read) + len(source.beside())
    return found


def captions(found: dict[str, Found]) -> dict[str, list[str]]:
    return {key: list(item.captions) for key, item in found.items() if isinstance(item, CaptionedImage)}


def reason(found: dict[str, Found], key: str) -> str:
    item = found[key]
    assert not isinstance(item, CaptionedImage)
    return item.reason


def test_everything_in_a_folder_is_a_picture_part_of_one_or_told(tmp_path: Path) -> None:
    files = {
        "a.jpg": "x",
        "a.txt": "a boat",
        "a.xmp": "part of a.jpg",
        "README.md": "",
        "lonely.txt": "",
        "LICENSE": "",
    }
    files |= {"LICENSE": "", "sub/notes.json": "{}", ".hidden/b.jpg": "x", "sub/c.xyz": ""}
    found = everything(FolderSource(str(made(tmp_path, files))))
    assert captions(found) == {"a.jpg": ["a boat"]}
    told = {key: item.reason for key, item in found.items() if isinstance(item, Ignored)}
    assert told == {
        "README.md": ".md is no suffix of a picture",
        "lonely.txt": "a .txt without a picture of its name",
        "LICENSE": "its name has no suffix of a picture",
        "sub/notes.json": "a .json without a picture of its name",
        "sub/c.xyz": ".xyz is no suffix of a picture",
        ".hidden/b.jpg": "in the hidden or left-behind folder .hidden",
    }


@pytest.mark.parametrize("suffix", ["jxl", "jp2", "tga", "ppm", "jpe", "apng", "JPEG", "heic", "psd", "nef", "svg"])
def test_pictures_of_rarer_formats_are_pictures(tmp_path: Path, suffix: str) -> None:
    found = everything(FolderSource(str(made(tmp_path, {f"a.{suffix}": "x", "a.txt": "a boat"}))))
    assert captions(found) == {f"a.{suffix}": ["a boat"]}


@pytest.mark.parametrize("suffix", [".caption", ".jpg.txt", ".captions", ".tags.txt", ".TXT.bak"])
def test_a_near_miss_is_named_with_a_setting_that_reads_it(tmp_path: Path, suffix: str) -> None:
    source = FolderSource(str(made(tmp_path, {"a.b.jpg": "x", f"a.b{suffix}": "a boat"})))
    told = reason(everything(source), "a.b.jpg")
    assert f"a.b{suffix} lies beside it: if such files are the captions, source.caption_suffix={suffix}" in told
    found = everything(FolderSource(str(tmp_path), caption_suffix=suffix))
    assert captions(found) == {"a.b.jpg": ["a boat"]}
    assert len(found) == 1  # the caption is no file without a picture
    assert FolderSource(str(tmp_path), caption_suffix=suffix).identity != source.identity


def test_a_caption_that_differs_in_capitals_is_named(tmp_path: Path) -> None:
    found = everything(FolderSource(str(made(tmp_path, {"DSC1.jpg": "x", "dsc1.txt": "a boat"}))))
    assert "dsc1.txt lies beside it and differs in its letters: rename it to DSC1.txt" in reason(found, "DSC1.jpg")


@pytest.mark.parametrize(("picture", "caption"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_with_accents_are_the_same_however_they_are_spelt(tmp_path: Path, picture: str, caption: str) -> None:
    key, text = (unicodedata.normalize(form, "grün") for form in (picture, caption))  # type: ignore[arg-type]
    found = everything(FolderSource(str(made(tmp_path, {f"{key}.jpg": "x", f"{text}.txt": "a field"}))))
    assert captions(found) == {f"{key}.jpg": ["a field"]}


@pytest.mark.parametrize("table", ["metadata.jsonl", "sub/part-000001.json", "captions.csv"])
def test_a_table_that_may_hold_the_captions_is_named(tmp_path: Path, table: str) -> None:
    found = everything(FolderSource(str(made(tmp_path, {"sub/a.jpg": "x", table: "{}"}))))
    told = reason(found, "sub/a.jpg")
    assert f"{tmp_path / table} may hold the captions" in told
    assert ("source.image_column=file_name source.caption_column=text" in told) == table.startswith("metadata")


def test_the_column_that_was_asked_for_is_read_and_nothing_else(tmp_path: Path) -> None:
    record = json.dumps({"caption": "alt text", "long": "a boat on a lake", "both": ["one", "two"]})
    files = {"a.jpg": "x", "a.txt": "IMG_42", "a.json": record, "b.jpg": "x", "b.txt": "IMG_43"}
    made(tmp_path, files)
    found = everything(FolderSource(str(tmp_path), caption_column="long"))
    assert captions(found) == {"a.jpg": ["a boat on a lake"]}
    assert "there is no .json with 'long'; the text file is not read" in reason(found, "b.jpg")
    assert captions(everything(FolderSource(str(tmp_path), caption_column="both"))) == {"a.jpg": ["one", "two"]}
    assert captions(everything(FolderSource(str(tmp_path)))) == {"a.jpg": ["IMG_42"], "b.jpg": ["IMG_43"]}
    kinds = [FolderSource(str(tmp_path), caption_column=column).identity for column in (None, "caption", "long")]
    assert all(one != other for one, other in ((kinds[0], kinds[1]), (kinds[1], kinds[2]), (kinds[0], kinds[2])))


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ('{"prompt": "a boat", "width": 64}', "holds no 'caption', but prompt, width; source.caption_column=KEY"),
        ('{"caption": {"en": "a boat"}}', "holds in 'caption' {'en': 'a boat'}, not a text"),
        ('{"caption": 7}', "holds in 'caption' 7, not a text"),
        ("[]", "holds []"),
        ('{"caption": "a\\u0000b"', "cannot be read"),
    ],
)
def test_a_record_without_a_caption_is_told_with_what_it_holds(tmp_path: Path, record: str, told: str) -> None:
    found = everything(FolderSource(str(made(tmp_path, {"a.jpg": "x", "a.json": record}))))
    assert told in reason(found, "a.jpg")


def test_a_caption_of_zero_bytes_is_none(tmp_path: Path) -> None:
    found = everything(FolderSource(str(made(tmp_path, {"a.jpg": "x", "a.txt": "a\0 b\0"}))))
    assert isinstance(found["a.jpg"], Unreadable)
    assert "save it as UTF-8" in reason(found, "a.jpg")


def test_the_longest_names_are_pictures_too(tmp_path: Path) -> None:
    name = "x" * 251
    made(tmp_path, {f"{name}.jpg": "x", f"{name}.txt": "a boat"})
    assert captions(everything(FolderSource(str(tmp_path)))) == {f"{name}.jpg": ["a boat"]}


@pytest.mark.parametrize(
    ("name", "told"), [("0.tar", "try source=webdataset"), ("list.csv", "try source=table"), ("a.mov", "such as a.mov")]
)
def test_a_folder_without_pictures_says_what_it_has(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"holds no pictures.*{told}"):
        FolderSource(str(made(tmp_path, {name: ""}))).shards()


def test_the_state_of_a_shard_follows_its_pictures_and_captions_alone(tmp_path: Path) -> None:
    made(tmp_path, {"a.jpg": "x", "a.txt": "a", "b.jpg": "x", "b.txt": "b"})
    before = [FolderSource(str(tmp_path), shard_size=1).state(shard) for shard in (0, 1)]
    (tmp_path / "b.txt").write_text("corrected")
    after = [FolderSource(str(tmp_path), shard_size=1).state(shard) for shard in (0, 1)]
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("suffix", ["", "/../../secret", "x/y.txt"])
@pytest.mark.parametrize("source", [FolderSource, TarSource])
def test_captions_lie_beside_their_pictures_and_nowhere_else(source: type, suffix: str) -> None:
    with pytest.raises(SettingsError, match=r"source\.caption_suffix is how captions' files end"):
        source("photos", caption_suffix=suffix)
