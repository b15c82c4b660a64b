import io
import json
import os
import random
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from microdit.data import shapes
from microdit.data.shards.remote import RemoteFileError
from microdit.data.sources import table
from microdit.data.sources.captioned import CaptionedImage, Source, Unreadable
from microdit.data.sources.captions import captions_in
from microdit.data.sources.embedded_shapes import SCENES_VERSION, ShapesSource
from microdit.data.sources.folder import FolderSource
from microdit.data.sources.held_out import PartOfSource
from microdit.data.sources.table import TableSource
from microdit.data.sources.tars import TarSource


def everything(source: Source) -> list[CaptionedImage | Unreadable]:
    return [item for shard in range(len(source.shards())) for item in source.read(shard)]


def as_text(source: Source) -> list[tuple[str, object]]:
    return [
        (item.key, list(item.captions) if isinstance(item, CaptionedImage) else item.reason.split(":")[0])
        for item in everything(source)
    ]


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_a_folder_gives_each_picture_with_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "deep/er/c.webp", "d.with.dots.jpeg", "lonely.gif", ".hidden.png"):
        (tmp_path / name).write_bytes(b"picture " + name.encode())
    (tmp_path / "a.txt").write_text("first\n line \n", encoding="utf-8")
    (tmp_path / "b.json").write_text('{"caption": ["one", " two "]}')
    (tmp_path / "deep/er/c.json").write_text('{"caption": "deep"}')
    (tmp_path / "d.with.dots.txt").write_text("\ufeffdots", encoding="utf-8")
    source = FolderSource(str(tmp_path), shard_size=2)
    assert len(source.shards()) == 3
    assert as_text(source) == [
        ("a.png", ["first line"]),
        ("b.JPG", ["one", "two"]),
        ("d.with.dots.jpeg", ["dots"]),
        ("deep/er/c.webp", ["deep"]),
        ("lonely.gif", "no caption"),
    ]
    first = everything(source)[0]
    assert isinstance(first, CaptionedImage)
    assert first.image == b"picture a.png"


def test_an_empty_or_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no pictures"):
        FolderSource(str(tmp_path)).shards()
    with pytest.raises(FileNotFoundError, match=r"source\.path=FOLDER"):
        FolderSource(str(tmp_path / "nothing")).shards()


def test_tars_as_img2dataset_writes_them(tmp_path: Path) -> None:
    files = {
        "./000.jpg": b"one",
        "./000.txt": b"first words",
        "./000.json": b'{"caption": "first words", "url": "u"}',
        "a/b.c.png": b"two",
        "a/b.c.json": json.dumps({"caption": ["x", "y"]}).encode(),
        "nothing.json": b'{"caption": "failed download"}',
        "bare.webp": b"three",
        "bad.jpg": b"four",
        "bad.json": b"{",
    }
    write_tar(tmp_path / "00000.tar", files)
    assert as_text(TarSource(str(tmp_path))) == [
        ("000", ["first words"]),
        ("a/b.c", ["x", "y"]),
        ("bare", "no caption"),
        ("bad", "no caption"),
        ("nothing", "no picture beside the caption"),
    ]
    reason = everything(TarSource(str(tmp_path)))[-2]
    assert isinstance(reason, Unreadable)
    assert "the .json cannot be read" in reason.reason


def test_a_damaged_tar_gives_what_it_can_and_says_what_is_lost(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "00000.tar", {f"{number}.{kind}": b"x" * 600 for number in range(4) for kind in ("jpg", "txt")}
    )
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[:5000])
    found = everything(TarSource(str(tmp_path)))
    assert sum(isinstance(item, CaptionedImage) for item in found) == 1
    assert isinstance(found[-1], Unreadable)
    assert found[-1].key == "00000.tar"
    assert "damaged tar" in found[-1].reason


def test_patterns_lists_and_folders_of_tars(tmp_path: Path) -> None:
    for number in range(12):
        write_tar(tmp_path / f"{number:05d}.tar", {"0.jpg": b"x", "0.txt": b"words"})
    names = [str(tmp_path / f"{number:05d}.tar") for number in range(12)]
    assert TarSource(str(tmp_path)).shards() == names
    assert TarSource(str(tmp_path / "{00003..00005}.tar")).shards() == names[3:6]
    assert TarSource(str(tmp_path / "0001*.tar")).shards() == names[10:]
    assert TarSource([names[2], names[1]]).shards() == [names[2], names[1]]
    assert TarSource("http://host/{0..2}.tar").shards() == [f"http://host/{number}.tar" for number in range(3)]
    with pytest.raises(FileNotFoundError, match=r"00099\.tar: there is no tar"):
        TarSource(str(tmp_path / "00099.tar")).shards()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_every_kind(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "007.png").write_bytes(b"b")
    several = ["one", "two"]
    table = pd.DataFrame({"file": ["a.png", "007.png", "none.png"], "text": ["plain, with comma", several, "lost"]})
    path = tmp_path / f"table{suffix}"
    if suffix in (".csv", ".tsv"):
        table["text"] = [json.dumps(text) if isinstance(text, list) else text for text in table["text"]]
        table.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
    elif suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table["text"] = [[text] if isinstance(text, str) else text for text in table["text"]]
        table.to_parquet(path)
    source = TableSource(str(path), image_column="file", caption_column="text")
    assert as_text(source) == [("a.png", ["plain, with comma"]), ("007.png", several), ("none.png", "cannot be read")]


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("commas.csv", "image,caption\na.png,red, round\na.png,fine\n", [("row 1", "put a caption that"), "fine"]),
        ("nothing.csv", "image,caption\n,words\n\na.png,fine\n", [("row 1", "names no picture"), "fine"]),
        ("empty.csv", "image,caption\na.png,\na.png,fine\n", [("a.png", "the row holds none"), "fine"]),
        ("cut.jsonl", '{"image": "a.png", "caption": "fine"}\n\n{"image": ', ["fine", ("row 2", "it is no JSON")]),
        (
            "null.jsonl",
            '{"image": null, "caption": "x"}\n[1]\n',
            [("row 1", "no picture"), ("row 2", "no JSON object")],
        ),
        ("half.jsonl", '{"image": "a.png", "caption": "half \\ud83d a sign"}\n', ["half ? a sign"]),
        ("marked.jsonl", '\ufeff{"image": "a.png", "caption": "fine"}\n', ["fine"]),
    ],
)
def test_an_odd_row_is_named_and_the_others_are_read(
    tmp_path: Path, name: str, content: str, rows: list[str | tuple[str, str]]
) -> None:
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / name).write_text(content, encoding="utf-8")
    found = everything(TableSource(str(tmp_path / name)))
    for item, expected in zip(found, rows, strict=True):
        if isinstance(expected, str):
            assert isinstance(item, CaptionedImage)
            assert item.captions == [expected]
        else:
            assert isinstance(item, Unreadable)
            assert item.key == expected[0]
            assert expected[1] in item.reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("wide.csv", "image,caption\na.png,words\n".encode("utf-16")),
        ("twice.csv", b"image,caption,caption\na.png,words,other words\n"),
        ("text.parquet", b"no table"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read as a table"):
        TableSource(str(tmp_path / name)).shards()


def write_bomb(path: Path, captions: pa.Array, rows: int, **options: Any) -> None:
    table = pa.table({"image": pa.array(["a.png"] * rows), "caption": captions})
    pq.write_table(table, path, compression="zstd", store_schema=False, **options)


def repeated(text: str, times: int) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(times, np.int32)), pa.array([text]))


BOMBS: dict[str, Callable[[Path], None]] = {
    "long text": lambda path: write_bomb(path, pa.array(["x" * (1 << 27)]), 1),
    "one text in many rows": lambda path: write_bomb(path, repeated("x" * (1 << 20), 2_000), 2_000),
    "one text many times in a row": lambda path: write_bomb(
        path, pa.ListArray.from_arrays([0, 2_000], repeated("x" * (1 << 20), 2_000)), 1
    ),
    "nothing many times in a row": lambda path: write_bomb(
        path, pa.ListArray.from_arrays([0, 2_000_000], repeated("", 2_000_000)), 1
    ),
    "many rows": lambda path: write_bomb(path, repeated("x", 2_000_000), 2_000_000),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_parquet_that_unpacks_to_much_more_than_its_file_is_refused_first(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "table.parquet"
    BOMBS[kind](path)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"table\.parquet cannot be read as a table: it unpacks to over 100 times"):
        TableSource(str(path)).shards()
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [1], "caption": ["x"]}, "its column 'image' holds int64, not texts"),
        ({"image": ["a.png"], "caption": [{"a": "x"}]}, "its column 'caption' holds struct<a: string>, not texts"),
        ({"image": ["a.png"], "caption": [b"x"]}, "its column 'caption' holds binary, not texts"),
        ({"image": ["a.png"], "text": ["x"]}, r"has no column 'caption', only \['image', 'text'\]"),
    ],
)
def test_parquet_of_other_kinds_is_named_with_its_column(tmp_path: Path, columns: dict, message: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "table.parquet")
    with pytest.raises(ValueError, match=rf"table\.parquet.*{message}"):
        TableSource(str(tmp_path / "table.parquet")).shards()


def test_what_pandas_left_in_a_parquet_file_steers_nothing_and_other_columns_are_not_read(tmp_path: Path) -> None:
    table = pa.table({"image": ["a.png"], "caption": pa.array(["x"]).dictionary_encode(), "other": ["y" * (1 << 27)]})
    told = {b"pandas": b'{"index_columns": ["nowhere"], "columns": [{"name": 1}], "pandas_version": []}'}
    pq.write_table(table.replace_schema_metadata(told), tmp_path / "table.parquet", compression="zstd")
    (tmp_path / "a.png").write_bytes(b"a")
    assert as_text(TableSource(str(tmp_path / "table.parquet"))) == [("a.png", ["x"])]


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_parquet_file_is_named(tmp_path: Path, seed: int) -> None:
    path, chance = tmp_path / "table.parquet", random.Random(seed)
    pq.write_table(pa.table({"image": ["a.png"] * 9, "caption": [["x"]] * 9}), path)
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[chance.randrange(len(content))] ^= chance.randrange(1, 256)
    path.write_bytes(content)
    try:
        TableSource(str(path)).shards()
    except ValueError as error:
        told = str(error)
    else:
        told = str(path)
    assert str(path) in told


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_line_longer_than_any_row_is_not_read_to_its_end(tmp_path: Path, suffix: str) -> None:
    with (tmp_path / f"table{suffix}").open("wb") as file:
        file.truncate(1 << 34)
    with pytest.raises(ValueError, match="a line has 16,777,216 characters or more"):
        TableSource(str(tmp_path / f"table{suffix}")).shards()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_that_would_never_end_is_not_read(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"table{suffix}")
    with pytest.raises(OSError, match="no ordinary file"):
        TableSource(str(tmp_path / f"table{suffix}")).shards()


def test_a_caption_longer_than_any_is_named_in_every_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a caption of 100,001 characters"):
        captions_in(["x", "y" * 100_001])


def test_a_file_in_a_tar_larger_than_any_picture_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "0.tar").open("wb") as file:  # holes, which take no place on the disk
        for name, size in (("a.jpg", 1 << 34), ("a.txt", 0)):
            member = tarfile.TarInfo(name)
            member.size = size
            file.write(member.tobuf())
            file.seek(size, 1)
        file.truncate(file.tell() + 1024)
    (found,) = everything(TarSource(str(tmp_path)))
    assert isinstance(found, Unreadable)
    assert "17,179,869,184 bytes, more than any picture" in found.reason


def test_captions_that_are_not_utf_8_are_named_and_not_trained_on(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "tars").mkdir()
    files = {f"{name}.jpg": b"x" for name in ("latin", "wide", "good")}
    files |= {"latin.txt": "grün".encode("latin-1"), "wide.txt": "words".encode("utf-16"), "good.txt": "grün".encode()}
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    write_tar(tmp_path / "tars/0.tar", files)
    for source in (FolderSource(str(tmp_path / "folder")), TarSource(str(tmp_path / "tars"))):
        found = {Path(item.key).stem: item for item in everything(source)}
        assert [name for name, item in found.items() if isinstance(item, CaptionedImage)] == ["good"]
        assert all("not UTF-8" in found[name].reason for name in ("latin", "wide"))  # type: ignore[union-attr]


def test_a_folder_and_a_tar_choose_the_same_captions(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "tars").mkdir()
    beside = {
        "both": (b"one", b'{"caption": "other"}'),
        "empty": (b" \n", b'{"caption": "from json"}'),
        "several": (b"one", b'{"caption": ["one", "two"]}'),
        "damaged": (b"one", b"{"),
        "deep": (b"one", b"[" * 100_000),
        "else": (None, b'{"text": "x"}'),
    }
    files = {f"{name}.jpg": b"x" for name in beside}
    files |= {f"{name}.txt": text for name, (text, _) in beside.items() if text is not None}
    files |= {f"{name}.json": record for name, (_, record) in beside.items()}
    for name, content in files.items():
        (tmp_path / "folder" / name).write_bytes(content)
    write_tar(tmp_path / "tars/0.tar", files)
    expected = {"both": ["one"], "empty": ["from json"], "several": ["one", "two"], "damaged": ["one"], "deep": ["one"]}
    for source in (FolderSource(str(tmp_path / "folder")), TarSource(str(tmp_path / "tars"))):
        found = {Path(item.key).stem: item for item in everything(source)}
        assert {k: item.captions for k, item in found.items() if isinstance(item, CaptionedImage)} == expected
        assert "the .json holds no 'caption'" in found["else"].reason  # type: ignore[union-attr]


def test_captions_beside_pictures_may_be_named_in_capitals(tmp_path: Path) -> None:
    (tmp_path / "DSC1.JPG").write_bytes(b"x")
    (tmp_path / "DSC1.TXT").write_text("a dog")
    assert as_text(FolderSource(str(tmp_path))) == [("DSC1.JPG", ["a dog"])]


def test_no_picture_in_a_folder_is_passed_over_in_silence(tmp_path: Path) -> None:
    for name in ("telephone.heic", "web.avif", "old.jfif", "link.jpg"):
        (tmp_path / name).with_suffix(".txt").write_text("words")
    for name in ("telephone.heic", "web.avif", "old.jfif"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    assert [key for key, _ in as_text(FolderSource(str(tmp_path)))] == [
        "link.jpg",
        "old.jfif",
        "telephone.heic",
        "web.avif",
    ]
    assert ("link.jpg", "cannot be read") in as_text(FolderSource(str(tmp_path)))


def test_each_location_of_tars_must_hold_some(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", {"0.jpg": b"x", "0.txt": b"words"})
    with pytest.raises(FileNotFoundError, match=r"other.*there is no tar"):
        TarSource([str(tmp_path), str(tmp_path / "other*.tar")]).shards()


def test_a_folder_whose_name_holds_brackets_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "tars [2024]").mkdir()
    write_tar(tmp_path / "tars [2024]/0.tar", {"0.jpg": b"x", "0.txt": b"words"})
    assert len(TarSource(str(tmp_path / "tars [2024]")).shards()) == 1


def test_a_remote_location_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(RemoteFileError, match="extra `remote`"):
        TarSource("s3://bucket/tars").shards()


@pytest.mark.parametrize("source", [FolderSource, TableSource])
def test_shards_of_no_pictures_are_refused(source: type[FolderSource] | type[TableSource]) -> None:
    with pytest.raises(ValueError, match="shard_size must be at least 1"):
        source("anywhere", shard_size=0)


def test_a_table_without_the_column_names_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,words\na.png,b\n")
    with pytest.raises(ValueError, match=r"no column 'image', only \['path', 'words'\]; set source\.image_column"):
        TableSource(str(tmp_path / "table.csv")).shards()
    (tmp_path / "table.xls").touch()
    with pytest.raises(ValueError, match="a table is one of"):
        TableSource(str(tmp_path / "table.xls")).shards()


@pytest.mark.parametrize(
    ("record", "captions"),
    [
        ("a", ["a"]),
        (["a", "", 3, "b "], ["a", "b"]),
        ({"caption": "a"}, ["a"]),
        ({"captions": ["a"]}, ["a"]),
        ({}, []),
        (None, []),
        (7, []),
    ],
)
def test_captions_are_found_in_any_record(record: object, captions: list[str]) -> None:
    assert captions_in(record) == captions


def test_held_out_pictures_and_the_rest_are_the_whole() -> None:
    source = ShapesSource("synthetic", count=200, side_px=8, shard_size=100)
    rest, held_out = (PartOfSource(source, 0.2, part) for part in (False, True))
    names = [{item.key for item in everything(part)} for part in (rest, held_out)]
    assert not names[0] & names[1]
    assert names[0] | names[1] == {item.key for item in everything(source)}
    assert 20 < len(names[1]) < 60
    assert rest.identity != held_out.identity


def test_scenes_do_not_change_without_a_new_version():
    samples = [shapes.sample("train", domain, number) for domain in shapes.DOMAINS for number in range(200)]
    told = [
        (one.caption, [(o.shape, o.colour, *(round(v, 3) for v in (o.x, o.y, o.size))) for o in one.scene.objects])
        for one in samples
    ]
    found = blake2b(repr(told).encode(), digest_size=8).hexdigest()
    assert (SCENES_VERSION, found) == (3, "9e44cab7dc3245e7"), "raise SCENES_VERSION: earlier folders are stale"


def test_what_is_no_ordinary_file_or_larger_than_any_picture_is_listed_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(1 << 40)
    for name in ("pipe", "endless", "large"):
        (tmp_path / f"{name}.txt").write_text("a caption")
    found = {item.key: item.reason for item in FolderSource(str(tmp_path)).read(0) if isinstance(item, Unreadable)}
    assert set(found) == {"pipe.jpg", "endless.jpg", "large.jpg"}
    assert "no ordinary file" in found["pipe.jpg"]
    assert "no ordinary file" in found["endless.jpg"]
    assert "more than any picture" in found["large.jpg"]


@pytest.mark.parametrize("braces", ["{1..2000000000}", "{a..z}" * 5])
def test_braces_that_mean_more_tars_than_there_are_end_soon(tmp_path: Path, braces: str) -> None:
    with pytest.raises(ValueError, match="means more than 1,000,000 tars"):
        TarSource(str(tmp_path / f"{braces}.tar")).tars()


def test_captions_by_the_hundred_thousand_are_listed_and_not_read(tmp_path: Path) -> None:
    many = json.dumps({"caption": ["x"] * 100_000})
    (tmp_path / "a.jpg").write_bytes(b"a")
    (tmp_path / "a.json").write_text(many)
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": "a.jpg", "caption": ["x"] * 100_000}) + "\n")
    folder, table = FolderSource(str(tmp_path)), TableSource(str(tmp_path / "t.jsonl"), image_column="image")
    for source in (folder, table):
        (told,) = source.read(0)
        assert isinstance(told, Unreadable)
        assert "100,000 captions, and 100 of a picture are the most" in told.reason


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "a\n" * 30, r"has no column 'image', only \['a'\]"),
        ("a.jsonl", "x\n" * 30, r"11 of its first 11 rows are none: it is no JSON"),
        ("a.csv", "image,caption\n" + ",b\n" * 30, "11 of its first 11 rows are none: it names no picture"),
        ("a.csv", "image,caption\n" + "x,b\n,b\n" * 30, None),
    ],
)
def test_a_table_of_rows_that_are_none_is_refused_before_all_of_them_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str, told: str | None
) -> None:
    monkeypatch.setattr(table, "MOST_UNREADABLE", 10)
    (tmp_path / name).write_text(content)
    source = TableSource(str(tmp_path / name))
    with nullcontext() if told is None else pytest.raises(ValueError, match=told):
        assert len(source.rows()) == 60
