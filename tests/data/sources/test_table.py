"""A table gives each row its own caption or its own reason, whatever a row of it holds."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from microdit.data.sources import rows as rows_of_a_file
from microdit.data.sources.captioned import CaptionedImage
from microdit.data.sources.table import TableSource
from microdit.kinds import SettingsError


def rows(path: Path, content: str | bytes, pictures: int = 9, **settings: object) -> list[str | tuple[str, str]]:
    """Of each row the caption, or the key and the reason why there is none."""
    for number in range(pictures):
        (path.parent / f"{number}.jpg").write_bytes(b"x")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = TableSource(str(path), **settings)  # type: ignore[arg-type]
    found = [item for shard in range(len(source.shards())) for item in source.read(shard)]
    return [
        item.captions[0] if isinstance(item, CaptionedImage) and len(item.captions) == 1 else told(item)
        for item in found
    ]


def told(item: object) -> tuple[str, str]:
    return (item.key, item.reason if hasattr(item, "reason") else str(list(item.captions)))  # type: ignore[attr-defined]


STRAY = ["a red boat", '"vintage sign', '"Sunset" by a painter', 'says "open"', 'ends with a quote"', '"', "a cat"]


@pytest.mark.parametrize(("suffix", "between"), [(".tsv", "\t"), (".csv", ",")])
@pytest.mark.parametrize("order", [("image", "caption"), ("caption", "image")])
def test_quotes_that_are_letters_cost_no_row(tmp_path: Path, suffix: str, between: str, order: Sequence[str]) -> None:
    lines = [{"image": f"{number}.jpg", "caption": caption} for number, caption in enumerate(STRAY)]
    text = "\n".join([between.join(order), *(between.join(line[name] for name in order) for line in lines)])
    assert rows(tmp_path / f"t{suffix}", text) == STRAY


@pytest.mark.parametrize(("suffix", "between"), [(".tsv", "\t"), (".csv", ",")])
@pytest.mark.parametrize("order", [("image", "caption"), ("caption", "image")])
def test_quotes_as_programs_write_them_hold_a_caption_together(
    tmp_path: Path, suffix: str, between: str, order: Sequence[str]
) -> None:
    captions = [f"one{between} two", 'she said "hello" twice', "first line\nsecond line, and\r\nthird", "plain", '"']
    lines = [
        {"image": f"{number}.jpg", "caption": '"' + caption.replace('"', '""') + '"'}
        for number, caption in enumerate(captions)
    ]
    text = "\r\n".join([between.join(order), *(between.join(line[name] for name in order) for line in lines)])
    assert rows(tmp_path / f"t{suffix}", text) == captions


def test_where_quoting_is_none_they_stay_letters(tmp_path: Path) -> None:
    text = 'image\tcaption\n0.jpg\t"a boat"\n1.jpg\ta "cat"\n'
    assert rows(tmp_path / "t.tsv", text, quoting="none") == ['"a boat"', 'a "cat"']
    assert rows(tmp_path / "t.tsv", text) == ["a boat", 'a "cat"']


@pytest.mark.parametrize("size", [200_000, 60])
def test_one_huge_cell_or_line_costs_its_own_row(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_of_a_file, "LONGEST_LINE", 50 if size == 60 else 1 << 24)
    for suffix, text in {
        ".csv": f'image,caption\n0.jpg,a\n1.jpg,"{"x" * size}"\n2.jpg,c\n',
        ".jsonl": "".join(
            json.dumps({"image": f"{n}.jpg", "caption": one}) + "\n" for n, one in enumerate(("a", "x" * size, "c"))
        ),
    }.items():
        first, odd, last = rows(tmp_path / f"t{suffix}", text)
        assert (first, last) == ("a", "c")
        assert "characters" in odd[1]


def test_rows_that_are_not_utf_8_cost_themselves_alone(tmp_path: Path) -> None:
    csv = "image,caption\n0.jpg,a\n1.jpg,grün\n2.jpg,c\n".encode("latin-1")
    lines = "".join(f'{{"image": "{n}.jpg", "caption": "{one}"}}\n' for n, one in enumerate(("a", "grün", "c")))
    for name, content in (("t.csv", csv), ("t.jsonl", lines.encode("latin-1"))):
        first, odd, last = rows(tmp_path / name, content)
        assert (first, last) == ("a", "c")
        assert "not UTF-8" in odd[1]
    with pytest.raises(ValueError, match="looks like UTF-16: save it as UTF-8"):
        rows(tmp_path / "wide.jsonl", lines.encode("utf-16-le"))


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["a dog", "a cat"]', ["a dog", "a cat"]),
        ("['a dog', \"it's a cat\"]", ["a dog", "it's a cat"]),
        ("[None, 'a dog', 7]", ["a dog"]),
        ("[untitled] a boat", ["[untitled] a boat"]),
        ("[4k, masterpiece]", ["[4k, masterpiece]"]),
        ("[open('x')]", ["[open('x')]"]),
        ("[" * 5000 + "]", ["[" * 5000 + "]"]),
    ],
)
def test_a_list_in_a_cell_is_its_captions(tmp_path: Path, cell: str, expected: list[str]) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    found = rows(tmp_path / "t.csv", f"image,caption\n0.jpg,{quoted}\n")
    assert found == expected if len(expected) == 1 else found == [("0.jpg", str(expected))]


@pytest.mark.parametrize("cell", ["", " ", "nan", "NaN", "None", "null", "[]", "<NA>"])
def test_what_programs_write_for_nothing_is_no_caption(tmp_path: Path, cell: str) -> None:
    ((key, reason),) = rows(tmp_path / "t.csv", f"image,caption\n0.jpg,{cell}\n")
    assert key == "0.jpg"
    assert "no caption" in reason


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"image": 7, "caption": "a"}, "names no picture in 'image', but 7, which is no path"),
        ({"image": ["0.jpg"], "caption": "a"}, "but ['0.jpg'], which is no path"),
        ({"image": "0.jpg", "caption": 7}, "holds none in 'caption', but 7"),
        ({"image": "0.jpg", "caption": {"en": {"x": 1}}}, "holds none in 'caption', but {'en'"),
        ({"image": "0.jpg", "caption": [[["a"]]]}, "holds none in 'caption'"),
        ({"image": "0.jpg\u0000", "caption": "a"}, "cannot be read"),
        ({"image": ".", "caption": "a"}, "cannot be read"),
        ({"image": "x" * 5000, "caption": "a"}, "cannot be read"),
    ],
)
def test_a_row_of_other_kinds_says_what_it_holds(tmp_path: Path, row: dict, said: str) -> None:
    text = json.dumps(row) + '\n{"image": "1.jpg", "caption": "fine"}\n'
    (_, reason), fine = rows(tmp_path / "t.jsonl", text)
    assert fine == "fine"
    assert said in reason


def test_a_first_line_that_is_a_row_is_told_with_what_to_type_which_reads_it(tmp_path: Path) -> None:
    text = "a very typical bus station\t0.jpg\nsierra looked stunning in this top\t1.jpg\n"
    with pytest.raises(ValueError, match=r"If the first line is a row .*'source\.columns=\[caption,image\]'"):
        rows(tmp_path / "t.tsv", text)
    found = rows(tmp_path / "t.tsv", text, columns=["caption", "image"])
    assert found == ["a very typical bus station", "sierra looked stunning in this top"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_another_delimiter_is_told_and_can_be_set(tmp_path: Path, delimiter: str) -> None:
    text = f"image{delimiter}caption\n0.jpg{delimiter}a boat, red\n"
    with pytest.raises(ValueError, match=r"source\.delimiter="):
        rows(tmp_path / "t.csv", text)
    assert rows(tmp_path / "t.csv", text, delimiter=delimiter) == ["a boat, red"]


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("t.csv", {"delimiter": "ab"}, "one character"),
        ("t.csv", {"columns": ["a", "caption"]}, r"source\.image_column=image is none of source\.columns"),
        ("t.jsonl", {"columns": ["image", "caption"]}, r"are of \.csv and \.tsv files"),
        ("t.parquet", {"quoting": "none"}, r"are of \.csv and \.tsv files"),
    ],
)
def test_a_setting_that_would_have_no_effect_is_refused(name: str, settings: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        TableSource(name, **settings)


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names the column 'caption' twice"):
        rows(tmp_path / "t.csv", "image,caption,caption\n0.jpg,a,b\n")


def test_folders_told_apart_by_backslashes_are_found(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.jpg").write_bytes(b"x")
    assert rows(tmp_path / "t.csv", "image,caption\ntrain\\a.jpg,a boat\n") == ["a boat"]


def test_a_folder_or_a_json_is_no_table_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder: name the table in it"):
        TableSource(str(tmp_path)).shards()
    (tmp_path / "captions.json").touch()
    with pytest.raises(ValueError, match=r"write a \.json of many pictures as a \.jsonl"):
        TableSource(str(tmp_path / "captions.json")).shards()


def test_the_state_of_a_shard_follows_its_rows_and_pictures(tmp_path: Path) -> None:
    text = "image,caption\n0.jpg,a\n1.jpg,b\n"
    rows(tmp_path / "t.csv", text)

    def states() -> list[str]:
        source = TableSource(str(tmp_path / "t.csv"), shard_size=1)
        return [source.state(0), source.state(1)]

    before = states()
    (tmp_path / "t.csv").write_text(text.replace(",b", ",corrected"))
    caption = states()
    (tmp_path / "0.jpg").write_bytes(b"repaired")
    picture = states()
    assert [one == other for one, other in zip(before, caption, strict=True)] == [True, False]
    assert [one == other for one, other in zip(caption, picture, strict=True)] == [False, True]


@pytest.mark.parametrize("pattern", ["{row:9999999999}.jpg", "{row.__class__}", "{other}", "{name", "{row:08d}" * 300])
def test_a_name_of_pictures_is_a_pattern_of_what_is_known_and_no_more(tmp_path: Path, pattern: str) -> None:
    rows(tmp_path / "t.csv", "image,caption\nhttp://example.org/a.jpg,a\n")
    with pytest.raises(SettingsError, match=r"is no pattern of \{row\}, \{name\}, \{stem\}"):
        TableSource(str(tmp_path / "t.csv"), image_name=pattern)
