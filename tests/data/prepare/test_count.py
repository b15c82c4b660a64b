"""Whatever lies in a source is counted once: found = written + filtered + broken + ignored, each that was not written
is listed with its reason, and each that was written has its own caption and no other."""

import csv
import gzip
import io
import json
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from caption_texts import caption_texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_tars import tar_of
from PIL import Image
from pyarrow import parquet as pq

from microdit.data.prepare.convert import prepare
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import Recipe
from microdit.data.prepare.report import Summary, grouped
from microdit.data.sources.captioned import Source
from microdit.data.sources.folder import FolderSource
from microdit.data.sources.held_out import PartOfSource
from microdit.data.sources.parquet import ParquetSource
from microdit.data.sources.table import TableSource
from microdit.data.sources.tars import TarSource
from microdit.data.stream.opening import open_mix
from microdit.encoders import PixelAutoencoder, WordsTextEncoder


def encoders() -> Encoders:
    return Encoders(PixelAutoencoder(), WordsTextEncoder(channels=8, length=6), "pixel", "words")


def picture(side: int = 16, kind: str = "png", grey: int = 7) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), grey, np.uint8)).save(file, kind)
    return file.getvalue()


SOUND, SMALL = picture(), picture(4)
# What may lie under a name, and the captions that would be right for it, if any: its own name, told by nobody else.
PICTURES: dict[str, bytes] = {
    "sound": SOUND,
    "jpeg": picture(kind="jpeg"),
    "small": SMALL,
    "cut": SOUND[: len(SOUND) // 2],
    "empty": b"",
    "page": b"<html>404</html>",
}
SUFFIXES = [".png", ".jpg", ".JPG", ".webp", ".jxl", ".tga", ".xyz", ""]
BESIDE: dict[str, Callable[[str], dict[str, bytes]]] = {
    "none": lambda own: {},
    "text": lambda own: {".txt": own.encode()},
    "mark": lambda own: {".txt": b"\xef\xbb\xbf" + own.encode() + b"\r\n"},
    "both": lambda own: {".txt": own.encode(), ".json": json.dumps({"caption": "of the json"}).encode()},
    "record": lambda own: {".json": json.dumps({"caption": own}).encode()},
    "list": lambda own: {".json": json.dumps({"caption": [own, None, ""]}).encode()},
    "null": lambda own: {".json": b'{"caption": null}'},
    "damaged": lambda own: {".json": b'{"caption": "'},
    "nested": lambda own: {".json": b'{"caption": {"en": [[1]]}}'},
    "wide": lambda own: {".txt": own.encode("utf-16")},
    "latin": lambda own: {".txt": b"gr\xfcn"},
    "huge": lambda own: {".txt": b"word " * 30_000},
    "blank": lambda own: {".txt": b" \n"},
    "near": lambda own: {".caption": own.encode()},
}
FOLDERS = ["", "sub", "sub/deep.er", ".hidden", "__MACOSX"]
things = st.dictionaries(
    st.tuples(st.sampled_from(FOLDERS), st.sampled_from(["a", "b", "c.d", "ü", "e f", ".g", "._h"])),
    st.tuples(
        st.sampled_from([*PICTURES, "absent"]),
        st.lists(st.sampled_from(SUFFIXES), min_size=1, max_size=2, unique_by=str.lower),
        st.sampled_from([*BESIDE]),
    ),
    max_size=8,
)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@contextmanager
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def files_of(chosen: dict) -> dict[str, bytes]:
    """Names and contents of what was drawn; the caption of each is its stem."""
    files = {}
    for (folder, stem), (kind, suffixes, beside) in chosen.items():
        name = f"{folder}/{stem}".removeprefix("/")
        files |= {f"{name}{suffix}": PICTURES[kind] for suffix in suffixes if kind in PICTURES}
        files |= {f"{name}{suffix}": content for suffix, content in BESIDE[beside](f"own of {stem}").items()}
    return files


def check(source: Source, root: Path, pictures: set[str] | None, own: Callable[[str], str]) -> list[Summary]:
    """Prepares both sides of a source, and compares counts, rejects.csv, dataset.json and captions. `pictures`: the
    names of all that have the suffix of a picture; `own`: the caption of a key."""
    summaries = [
        prepare(PartOfSource(source, 0.3, held), root / "data" / split, encoders(), Recipe([8], min_side_px=8))
        for split, held in (("train", False), ("validation", True))
    ]
    told: list[str] = []
    for summary in summaries:
        assert summary.found == summary.written + summary.filtered + summary.broken + summary.ignored
        with (summary.folder / "rejects.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == summary.found - summary.written
        assert all(row["kind"] in ("filtered", "broken", "ignored") and row["reason"] for row in rows)
        counts = json.loads((summary.folder / "dataset.json").read_text())["counts"]
        assert {name: counts[name] for name in ("found", "written", "ignored")} == {
            name: getattr(summary, name) for name in ("found", "written", "ignored")
        }
        told += [row["key"] for row in rows]
        assert f"{summary.ignored} ignored of {summary.found} found" in str(summary)
        if summary.written:
            told += written_with_own_captions(summary, own)
    if pictures is not None:
        assert pictures <= {*told}
        assert len([key for key in told if key in pictures]) == len(pictures)
    return summaries


def written_with_own_captions(summary: Summary, own: Callable[[str], str]) -> list[str]:
    keys = []
    for tar in sorted(summary.folder.glob("*.tar")):
        with tarfile.open(tar) as file:
            for member in file:
                if member.name.endswith(".json"):
                    record = json.loads(file.extractfile(member).read())  # type: ignore[union-attr]
                    assert record["caption"] == own(record["key"])
                    keys.append(record["key"])
    mix = [{"name": "data", "folder": str(summary.folder)}]
    stream = open_mix(mix, resolution_px=8, seed=0, autoencoder="pixel", text_encoder="words", shuffle=False)
    assert sorted(caption_texts(stream, range(len(stream)))) == sorted(map(own, keys))
    return keys


def is_named_as_a_picture(name: str) -> bool:
    return name.lower().endswith((".png", ".jpg", ".webp", ".jxl", ".tga")) and "." in name.rpartition("/")[2][1:]


def stem_of(key: str) -> str:
    name = key.rpartition("/")[2]
    return name.rpartition(".")[0] if is_named_as_a_picture(key) else name


@few
@given(things, st.booleans())
def test_a_folder_of_anything_adds_up(chosen: dict, linked: bool) -> None:
    with place() as root:
        (root / "pictures").mkdir()
        files = {"z.png": SOUND, "z.txt": b"own of z"} | files_of(chosen)
        for name, content in files.items():
            (root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "pictures" / name).write_bytes(content)
        if linked:
            (root / "elsewhere").mkdir()
            (root / "elsewhere/l.png").write_bytes(SOUND)
            (root / "elsewhere/l.txt").write_bytes(b"own of l")
            (root / "pictures/link").symlink_to(root / "elsewhere")
            (root / "pictures/round").symlink_to(root / "pictures")
            files["link/l.png"] = SOUND
        source = FolderSource(str(root / "pictures"), shard_size=3)
        check(source, root, set(filter(is_named_as_a_picture, files)), lambda key: f"own of {stem_of(key)}")


@few
@given(
    st.lists(st.tuples(things, st.sampled_from(["tar", "gz", "cut", "page", "nested"])), min_size=1, max_size=3),
    st.booleans(),
)
def test_tars_of_anything_add_up(drawn: list[tuple[dict, str]], twice: bool) -> None:
    with place() as root:
        (root / "tars/sub").mkdir(parents=True)
        pictures, ignored = 1, 1
        for number, (chosen, packed) in enumerate(drawn):
            members = [*files_of(chosen).items()]
            whole = tar_of([*members, *members[:2]] if twice else members)
            content = {"gz": gzip.compress(whole), "cut": whole[: len(whole) // 2], "page": b"<html>"}.get(
                packed, whole
            )
            folder = root / "tars" / ("sub" if packed == "nested" else "")
            (folder / f"{number}.tar").write_bytes(content)
            if packed not in ("cut", "page"):
                names = [name for name, _ in members]
                pictures += len(list(filter(is_named_as_a_picture, [*names, *(names[:2] if twice else [])])))
                ignored += sum(any(part.startswith((".", "__")) for part in name.split("/")) for name in names)
        (root / "tars/notes.md").write_bytes(b"")
        (root / "tars/z.tar").write_bytes(tar_of([("z.png", SOUND), ("z.txt", b"own of z")]))
        found = check(TarSource(str(root / "tars")), root, None, lambda key: f"own of {stem_of(key)}")
        assert sum(summary.found for summary in found) >= pictures
        assert sum(summary.ignored for summary in found) >= ignored


def own_caption(number: int, odd: str) -> str:
    return f"own of {number}{odd}and more{odd}"


ODD = ["", '"', ' "so', ', "', "\t", "\n", "\r\n", ' "a" ', "[", "'", ";", "\u2028", "\\", "]"]


@few
@given(
    st.lists(st.sampled_from(ODD), min_size=1, max_size=8),
    st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]),
    st.booleans(),
)
def test_tables_as_programs_write_them_keep_every_caption(odd: list[str], suffix: str, image_first: bool) -> None:
    import pandas as pd

    captions = [own_caption(number, more) for number, more in enumerate(odd)]
    with place() as root:
        for number in range(len(odd)):
            (root / f"{number}.png").write_bytes(SOUND)
        frame = pd.DataFrame({"image": [f"{number}.png" for number in range(len(odd))], "caption": captions})
        frame = frame if image_first else frame[["caption", "image"]]
        path = root / f"t{suffix}"
        if suffix == ".parquet":
            frame.to_parquet(path)
        elif suffix == ".jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_csv(path, index=False, sep="," if suffix == ".csv" else "\t")
        summaries = check(
            TableSource(str(path)), root, None, lambda key: captions[int(key.removesuffix(".png"))].strip()
        )
        assert sum(summary.written for summary in summaries) == len(odd)


LINES = ["0.png,own of 0", '"1.png,own of 1', '1.png,"own of 1', '2.png,own of 2"', '"', ",", "3.png", "3.png,", ",x"]
LINES += [
    "4.png,own of 4,more",
    "5.png,nan",
    "\x00",
    "absent.png,own of absent",
    '0.png,"own of 0"',
    "./0.png,own of 0",
]


@few
@given(st.lists(st.sampled_from(LINES), max_size=9), st.sampled_from([",", "\t"]))
def test_tables_of_any_lines_add_up(lines: list[str], between: str) -> None:
    with place() as root:
        for number in range(6):
            (root / f"{number}.png").write_bytes(SOUND)
        path = root / ("t.csv" if between == "," else "t.tsv")
        text = "\n".join(["image,caption", "0.png,own of 0", *lines]).replace(",", between)
        path.write_text(text)
        source = TableSource(str(path))
        summaries = check_any(source, root)
        # Quotes join lines at most; none is lost, and no row more than there are lines.
        assert sum(summary.found for summary in summaries) <= 1 + len(lines)
        assert sum(summary.found for summary in summaries) == len(source.rows())


def check_any(source: Source, root: Path) -> list[Summary]:
    def own(key: str) -> Any:
        class Near(str):
            """Equal to the caption of the key, with or without quotes that stand beside it, and with lines that are no
            rows by themselves and that quotes hold together with it."""

            __hash__ = str.__hash__

            def __eq__(self, other: object) -> bool:
                first, *rest = str(other).strip('"').split("\n")
                return first.strip('"') == str(self) and not any("own" in line for line in rest)

        return Near(f"own of {key.removeprefix('./').removesuffix('.png')}")

    summaries = []
    for split, held in (("train", False), ("validation", True)):
        summary = prepare(
            PartOfSource(source, 0.3, held), root / "data" / split, encoders(), Recipe([8], min_side_px=8)
        )
        assert summary.found == summary.written + summary.filtered + summary.broken + summary.ignored
        for tar in sorted(summary.folder.glob("*.tar")):
            with tarfile.open(tar) as file:
                records = [json.loads(file.extractfile(m).read()) for m in file if m.name.endswith(".json")]  # type: ignore[union-attr]
            assert all(own(record["key"]) == record["caption"] for record in records)
        summaries.append(summary)
    return summaries


def test_reasons_are_told_by_kind_with_the_first_names(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(5):
        (tmp_path / f"pictures/{number}.png").write_bytes(picture(2 + number))
        (tmp_path / f"pictures/{number}.txt").write_text("a caption")
    (tmp_path / "pictures/notes.md").write_text("")
    summary = prepare(FolderSource(str(tmp_path / "pictures")), tmp_path / "data", encoders(), Recipe([16]))
    told = str(summary).splitlines()
    assert "0 written, 5 filtered, 0 broken, 1 ignored of 6 found" in told[0]
    assert told[1:3] == [
        "  filtered 5: 2 x 2 px: a side shorter than 16 px (0.png, 1.png, 2.png and 2 more)",
        "  ignored 1: .md is no suffix of a picture (notes.md)",
    ]


@pytest.mark.parametrize("name", ["a\nb.png", "a\x1b[2Jb.png"])
def test_a_name_cannot_pass_for_another_line(name: str) -> None:
    assert grouped([[name, "broken", f"reason of {name}"]])[0][2:] == (1, [name])
    empty: dict[str, Any] = dict.fromkeys(Summary.__dataclass_fields__, 0)
    told = Summary(**empty | {"reasons": grouped([[name, "broken", f"reason\n{name}"]]), "folder": Path("x")}).why()
    assert len(told) == 2
    assert not any("\n" in line or "\x1b" in line for line in told)


# What a row may hold for a caption; the own one of each picture is told by nobody else.
LISTED: dict[str, Callable[[str], object]] = {
    "own": lambda own: own,
    "list": lambda own: [own, None],
    "none": lambda own: None,
    "number": lambda own: 3,
    "nested": lambda own: {"en": own},
    "blank": lambda own: " ",
    "huge": lambda own: "word " * 30_000,
    "many": lambda own: [own] * 200,
}
rows_of_pictures = st.lists(
    st.tuples(
        st.sampled_from(FOLDERS[:3]),
        st.sampled_from(["a", "b", "c.d", "ü", "e f"]),
        st.sampled_from([*PICTURES, "absent"]),
        st.sampled_from([*LISTED, "absent"]),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda row: row[:2],
)


@few
@given(rows_of_pictures, st.sampled_from(["folder", "tar", "zip"]), st.sampled_from([".jsonl", ".json"]), st.booleans())
def test_captions_elsewhere_add_up(drawn: list[tuple[str, str, str, str]], lies: str, suffix: str, odd: bool) -> None:
    with place() as root:
        names = [(f"{folder}/{stem}.png".removeprefix("/"), kind, told) for folder, stem, kind, told in drawn]
        files = {"z.png": SOUND} | {name: PICTURES[kind] for name, kind, _ in names if kind in PICTURES}
        listed = [
            {"image": name, "caption": LISTED[told](f"own of {name}")} for name, _, told in names if told in LISTED
        ]
        rows: list[object] = [{"image": "./z.png", "caption": "own of z.png"}, *listed]
        rows.append({"image": "sub/gone.png", "caption": "so names here are whole paths"})
        rows += [{"image": None, "caption": "x"}, {"caption": "y"}] if odd else []
        text = json.dumps(rows) if suffix == ".json" else "\n".join([*map(json.dumps, rows), *(["{"] if odd else [])])
        (root / f"list{suffix}").write_text(text)
        (root / "pictures").mkdir()
        if lies == "folder":
            for name, content in files.items():
                (root / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
                (root / "pictures" / name).write_bytes(content)
        elif lies == "tar":
            (root / "pictures/0.tar").write_bytes(tar_of([*files.items()]))
        else:
            with zipfile.ZipFile(root / "pictures/0.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in files.items():
                    archive.writestr(name, content)
        kind = FolderSource if lies == "folder" else TarSource
        source = kind(str(root / "pictures"), captions=str(root / f"list{suffix}"))
        keys = {name if lies == "folder" else name.removesuffix(".png") for name in files}
        check(source, root, keys, lambda key: f"own of {key.removesuffix('.png')}.png")


@few
@given(rows_of_pictures, st.booleans())
def test_parquet_with_pictures_adds_up(drawn: list[tuple[str, str, str, str]], cut: bool) -> None:
    with place() as root:
        images = [
            {"bytes": PICTURES.get(kind), "path": None if kind in PICTURES else "gone.png"} for _, _, kind, _ in drawn
        ]
        told = {"own": lambda own: [own], "list": lambda own: [own, None], "many": lambda own: [own] * 200}
        captions = [told.get(kind, lambda own: None)(f"own of t/{n + 1:06d}") for n, (*_, kind) in enumerate(drawn)]
        table = pa.table(
            {"image": [{"bytes": SOUND, "path": None}, *images], "caption": [["own of t/000000"], *captions]}
        )
        (root / "pictures").mkdir()
        pq.write_table(table, root / "pictures/t.parquet", row_group_size=2)
        if cut:  # damaged where the pictures are, its directory at the end sound
            content = bytearray((root / "pictures/t.parquet").read_bytes())
            content[-len(content) // 3 * 2 : -len(content) // 2] = bytes(len(content) // 3 * 2 - len(content) // 2)
            (root / "pictures/t.parquet").write_bytes(content)
        keys = None if cut else {f"t/{number:06d}" for number in range(len(drawn) + 1)}
        # Where its first file cannot be opened, nothing is begun.
        with suppress(ValueError) if cut else nullcontext():
            check(ParquetSource(str(root / "pictures")), root, keys, lambda key: f"own of {key}")
