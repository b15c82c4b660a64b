"""Parquet files with pictures in them give each row its own caption or its own reason."""

import random
from pathlib import Path

import made_sets
import pyarrow as pa
import pytest
from made_sets import COUNT, picture, words
from pyarrow import parquet

from microdit.data.sources import parquet as module
from microdit.data.sources.captioned import CaptionedImage, Found, Unreadable
from microdit.data.sources.parquet import ParquetSource


def everything(source: ParquetSource) -> list[Found]:
    return [item for shard in range(len(source.shards())) for item in source.read(shard)]


def test_an_odd_row_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(b"beside")
    images = [
        {"bytes": b"x", "path": None},
        None,
        {"bytes": None, "path": "beside.jpg"},
        {"bytes": b"", "path": "gone"},
    ]
    captions = [["one", "uno"], ["lost"], ["beside"], ["gone"]]
    parquet.write_table(pa.table({"image": images, "captions": captions}), tmp_path / "t.parquet")
    found = everything(ParquetSource(str(tmp_path)))
    assert [list(item.captions) for item in found if isinstance(item, CaptionedImage)] == [["one", "uno"], ["beside"]]
    reasons = [item.reason for item in found if isinstance(item, Unreadable)]
    assert "there is no picture in 'image'" in reasons[0]
    assert "No such file" in reasons[1]


def test_a_picture_that_very_many_rows_repeat_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALWAYS_ROOM", 0)
    same = pa.array([0] * 20_000, pa.int32())
    columns = {"image": pa.array([picture(0)]), "caption": pa.array(["the same"])}
    table = pa.table({name: pa.DictionaryArray.from_arrays(same, one) for name, one in columns.items()})
    parquet.write_table(table, tmp_path / "t.parquet", store_schema=False)
    *found, last = everything(ParquetSource(str(tmp_path)))
    assert len(picture(0)) * len(found) < 100 * (tmp_path / "t.parquet").stat().st_size
    assert isinstance(last, Unreadable)
    assert "unpacks to over 100 times its size" in last.reason


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"image": ["a.jpg"], "caption": ["x"]},
            "holds string, not the bytes of pictures; for paths there is source=table",
        ),
        (
            {"picture": [b"x"], "caption": ["x"]},
            r"has no column 'image', only \['picture', 'caption'\]; set source.image_column",
        ),
        ({"image": [b"x"], "text": ["x"]}, r"has no column 'caption', only .*; set source.caption_column"),
    ],
)
def test_other_columns_are_told_before_a_picture_is_read(tmp_path: Path, columns: dict[str, list], said: str) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=said):
        ParquetSource(str(tmp_path)).shards()


@pytest.mark.parametrize(
    ("name", "said"), [("metadata.jsonl", "source=imagefolder"), ("a.csv", "source=table"), ("a.zip", "but a.zip")]
)
def test_a_folder_without_parquet_says_what_it_has(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(FileNotFoundError, match=said):
        ParquetSource(str(tmp_path)).shards()


def test_a_file_that_says_it_unpacks_to_much_more_is_not_unpacked(tmp_path: Path) -> None:
    table = pa.table({"image": [bytes(1 << 26)] * 3, "caption": ["x"] * 3})
    parquet.write_table(table, tmp_path / "t.parquet", compression="zstd", use_dictionary=False)
    (told,) = everything(ParquetSource(str(tmp_path)))
    assert isinstance(told, Unreadable)
    assert "unpacks to over 100 times its size" in told.reason


@pytest.mark.parametrize("seed", range(20))
def test_random_damage_gives_no_wrong_caption(tmp_path: Path, seed: int) -> None:
    made_sets.huggingface(tmp_path / "set")
    path, chance = tmp_path / "set/data/train-00001-of-00002.parquet", random.Random(seed)
    content = bytearray(path.read_bytes())
    for _ in range(4):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    known = {picture(number): number for number in range(COUNT)}
    for item in everything(ParquetSource(str(tmp_path / "set"))):
        if isinstance(item, CaptionedImage) and item.image in known and item.captions[0] in map(words, range(COUNT)):
            assert item.captions == [words(known[item.image])]
