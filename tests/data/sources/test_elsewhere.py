"""Captions that lie apart come to the picture they are of, and to no other; what is odd costs its own picture alone."""

import json
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import pyarrow as pa
import pytest
from made_tars import tar_of
from pyarrow import parquet

from microdit.data.sources.captioned import CaptionedImage, Ignored, Source, Unreadable, Unwanted
from microdit.data.sources.folder import FolderSource
from microdit.data.sources.tars import TarSource
from microdit.kinds import SettingsError


def folder_of(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return str(root)


def captions(source: Source) -> dict[str, list[str]]:
    found = (item for shard in range(len(source.shards())) for item in source.read(shard))
    return {item.key: list(item.captions) for item in found if isinstance(item, CaptionedImage)}


def told(source: Source) -> dict[str, str]:
    found = [*(item for shard in range(len(source.shards())) for item in source.read(shard)), *source.beside()]
    return {item.key: item.reason for item in found if isinstance(item, Unreadable | Unwanted | Ignored)}


def list_of(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_a_name_in_several_folders_means_the_one_whose_folder_it_has(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "p", "a/1.jpg", "b/1.jpg", "c/d/1.jpg", "c/2.png")
    rows = [{"image": "./a/1.jpg", "caption": "in a"}, {"image": "d\\1.jpg", "caption": "in d"}]
    rows += [{"image": "2", "caption": "two"}, {"image": "e/2.png", "caption": "of e"}]
    source = FolderSource(pictures, captions=list_of(tmp_path / "t.jsonl", *rows))
    assert captions(source) == {"a/1.jpg": ["in a"], "c/d/1.jpg": ["in d"]}  # a list with folders means whole paths
    assert "names no '1', but one in a" in told(source)["b/1.jpg"]


def test_a_picture_in_no_folder_is_not_the_one_of_a_folder_where_the_list_names_both(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "p", "a.jpg", "b.jpg")
    rows = [{"image": "a.jpg", "caption": "a"}, {"image": "sub/b.jpg", "caption": "b in sub"}]
    assert captions(FolderSource(pictures, captions=list_of(tmp_path / "t.jsonl", *rows))) == {"a.jpg": ["a"]}
    below = {"a.jpg": ["of the folder above"], "b.jpg": ["b in sub"]}
    rows[0] = {"image": "sub/a.jpg", "caption": "of the folder above"}
    assert captions(FolderSource(pictures, captions=list_of(tmp_path / "u.jsonl", *rows))) == below


def test_a_name_without_a_folder_that_several_pictures_have_is_nobodys(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "p", "a/1.jpg", "b/1.jpg")
    source = FolderSource(pictures, captions=list_of(tmp_path / "t.jsonl", {"image": "1.jpg", "caption": "whose?"}))
    assert captions(source) == {}
    assert "several pictures are called '1'" in told(source)["a/1.jpg"]


def test_rows_of_one_picture_are_its_captions_and_odd_rows_are_told(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "p", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "ü.jpg")
    rows: list[dict[str, object]] = [{"image": "1.jpg", "caption": text} for text in ("one", "uno", "one")]
    rows += [{"image": "2.jpg", "caption": {"en": "two"}}, {"image": 3, "caption": ["three", "tres"]}]
    rows += [
        {"image": None, "caption": "x"},
        {"image": "9.jpg", "caption": "gone"},
        {"image": "u\u0308.jpg", "caption": "ue"},
    ]
    path = list_of(tmp_path / "p/list.jsonl", *rows)
    Path(path).write_text(Path(path).read_text() + "\n{")
    source = FolderSource(pictures, captions=path)
    assert captions(source) == {"1.jpg": ["one", "uno"], "3.jpg": ["three", "tres"], "ü.jpg": ["ue"]}
    reasons = told(source)
    assert set(reasons) == {"2.jpg", "4.jpg", "list.jsonl"}
    assert "{'en': 'two'} in 'caption', not a text" in reasons["2.jpg"]
    assert "names no '4'; 2 of its rows cannot be read (row 6 names no picture in 'image')" in reasons["4.jpg"]
    assert reasons["list.jsonl"] == "it names 1 pictures that are not here (9)"


def test_numbers_of_the_list_leave_pictures_out(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "p", *(f"{number}.jpg" for number in range(4)))
    columns = {
        "image": [f"{number}.jpg" for number in range(4)],
        "caption": list("abcd"),
        "score": [1.5, 5.0, None, 7.0],
    }
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = FolderSource(pictures, captions=str(tmp_path / "t.parquet"), least={"score": 2}, most={"score": 6})
    assert captions(source) == {"1.jpg": ["b"]}
    assert told(source) == {
        "0.jpg": "'score' is 1.5, which is less than 2",
        "2.jpg": "there is no number in 'score', which is to be compared",
        "3.jpg": "'score' is 7, which is more than 6",
    }


@pytest.mark.parametrize("folder", [False, True])
def test_numbers_beside_a_picture_leave_it_out(tmp_path: Path, folder: bool) -> None:
    members = [
        ("a.jpg", b"a"),
        ("a.txt", b"one"),
        ("a.json", b'{"clip": {"score": 0.3}}'),
        ("b.jpg", b"b"),
        ("b.txt", b"b"),
    ]
    members += [("c.jpg", b"c"), ("c.txt", b"c"), ("c.json", b'{"clip": {"score": "0.1"}}')]
    if folder:
        for name, content in members:
            (tmp_path / name).write_bytes(content)
    else:
        (tmp_path / "0.tar").write_bytes(tar_of(members))
    source = (FolderSource if folder else TarSource)(str(tmp_path), least={"clip.score": 0.2})
    assert [*captions(source).values()] == [["one"]]
    assert len(told(source)) == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "t.jsonl",
            '{"file": "a.jpg", "text": "x"}',
            r"no column 'image', only \['file', 'text'\]; set source.image_column",
        ),
        ("t.jsonl", '{"image": "a.jpg", "text": "x"}', r"no column 'caption', only .*; set source.caption_column"),
        ("t.jsonl", "x\ny", r"names no picture: row 1: it is no JSON"),
        ("t.json", "3", "it holds a int, and no list of objects"),
        ("t.json", "[" * 100_000, "it is nested too deeply"),
        ("t.json", '{"images": [{"id": [1]}], "annotations": [{"image_id": {}}]}', "it is of no image in the file"),
        ("t.csv", "", "names no picture"),
        ("t.tar", "not a tar", "no readable uncompressed tar"),
        ("t.tgz", "\x1f", "no readable uncompressed tar"),
    ],
)
def test_what_is_no_list_of_captions_is_told_before_any_picture_is_read(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    pictures = folder_of(tmp_path / "p", "a.jpg")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=rf"source\.captions=.*{name}.*{said}"):
        FolderSource(pictures, captions=str(tmp_path / name)).shards()


def test_settings_without_effect_and_files_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"source\.image_column is of source\.captions"):
        FolderSource(str(tmp_path), image_column="file")
    with pytest.raises(FileNotFoundError, match=r"source\.captions=.*nowhere: there is no such file"):
        FolderSource(folder_of(tmp_path / "p", "a.jpg"), captions=str(tmp_path / "nowhere")).shards()


def test_a_corrected_list_changes_what_was_read_from(tmp_path: Path) -> None:
    pictures = folder_of(tmp_path / "p", "a.jpg")
    path = list_of(tmp_path / "t.jsonl", {"image": "a.jpg", "caption": "wrong"})
    before = FolderSource(pictures, captions=path).state(0)
    assert FolderSource(pictures, captions=path).state(0) == before
    list_of(tmp_path / "t.jsonl", {"image": "a.jpg", "caption": "corrected"})
    assert FolderSource(pictures, captions=path).state(0) != before


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_a_damaged_zip_costs_what_is_damaged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "0.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a", "b"):
            archive.writestr(f"{name}.jpg", bytes(range(256)) * 40)
            archive.writestr(f"{name}.txt", name)
    content = bytearray(path.read_bytes())
    content[60:70] = bytes(10)
    path.write_bytes({"cut": content[:300], "changed": bytes(content), "empty": b"PK\x03\x04"}[damage])
    source = TarSource(str(tmp_path))
    if damage == "changed":
        assert captions(source) == {"b": ["b"]}
        assert "'a.jpg' cannot be unpacked" in told(source)["a"]
    else:
        assert captions(source) == {}
        assert "damaged zip" in told(source)["0.zip"]


def test_a_zip_that_unpacks_to_much_more_than_it_is_costs_no_memory(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "0.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.jpg", bytes(1 << 27))
    assert "unpacks to over 100 times" in told(TarSource(str(tmp_path)))["0.zip"]


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_no_more_of_a_zip_is_unpacked_than_its_directory_says(tmp_path: Path, method: int) -> None:
    path, said = tmp_path / "0.zip", 1000
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.jpg", bytes(1 << 26))
        archive.writestr("a.txt", "nothing")
    forged = path.read_bytes()
    for true, told_instead in ((1 << 26, said), (zlib.crc32(bytes(1 << 26)), zlib.crc32(bytes(said)))):
        forged = forged.replace(true.to_bytes(4, "little"), told_instead.to_bytes(4, "little"))
    path.write_bytes(forged)
    tracemalloc.start()
    try:
        found = [item for item in TarSource(str(tmp_path)).read(0) if isinstance(item, CaptionedImage)]
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()
    assert [item.image for item in found] == ([bytes(said)] if method == zipfile.ZIP_DEFLATED else [])
