"""A table of pictures and captions: CSV, TSV, JSONL or Parquet, one row a picture, its file named by a column."""

import ast
import csv
import io
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, TextIO

from microdit.data.sources.below import state_of
from microdit.data.sources.captioned import (
    CaptionedImage,
    Found,
    Source,
    Unreadable,
    captions_in,
    check_shard_size,
    content_of,
    in_brief,
)
from microdit.data.sources.images import SUFFIXES as PICTURES
from microdit.files import is_refusal, size_of_file
from microdit.kinds import SettingsError

LONGEST_LINE = 1 << 24  # characters; a hundred captions as long as any have fewer
LONGEST_NAME = 40  # characters, that a column's name has and a caption may pass
LONGEST_LIST = 1 << 20  # characters of a list of captions in a cell
SURROGATE = re.compile("[\udc80-\udcff]")
LONGEST_SKIPPED = 16  # times as many, of a line that is listed as too long
LONGEST_ROW = 100  # lines of a text in quotes
MOST_TIMES, ALWAYS_ROOM = 100, 1 << 26  # of its size, or bytes, may a table unpack to
TEXT_BYTES = 50  # that a text takes, however short it is
MOST_NAMED = 50  # columns in a message
MOST_UNREADABLE = 100_000  # rows, of a table that has fewer others
# What programs write where there is nothing.
EMPTY_CELLS = frozenset(("nan", "none", "null", "n/a", "<na>"))
Quoting = Literal["auto", "none"]
Row = Mapping[str, object] | str  # or why it cannot be read


def lines_of(file: TextIO) -> Iterator[str | None]:
    """The lines of a file; None for one that is longer than any row. ValueError where one does not end."""
    while line := file.readline(LONGEST_LINE):
        if len(line) < LONGEST_LINE or line.endswith("\n"):
            yield line
            continue
        for _ in range(LONGEST_SKIPPED):
            rest = file.readline(LONGEST_LINE)
            if len(rest) < LONGEST_LINE or rest.endswith("\n"):
                break
        else:
            raise ValueError(f"a line has {LONGEST_LINE:,} characters or more, and no end")
        yield None


TOO_LONG = f"its line has {LONGEST_LINE:,} characters or more"


class Separated:
    """How the rows of a CSV or TSV file are told apart: by lines, and by quotes only where these make whole rows of
    whole lines. A caption with a quote too many costs its own row and no other.

    `delimiter` between cells; `quoting`: "none" where quotes are letters like others; `columns`: where the file has no
    first line with their names; `is_image`: whether a text is likely the path of a picture. `found`: the names of
    the columns, once rows are read.
    """

    def __init__(
        self,
        delimiter: str,
        quoting: Quoting,
        columns: Sequence[str] | None,
        image_column: str,
        is_image: Callable[[str], bool],
    ) -> None:
        self.delimiter, self.quoting, self.columns = delimiter, quoting, columns
        self.image_column, self.is_image = image_column, is_image
        self.found: list[str] = []

    def rows(self, path: Path) -> Iterator[Row]:
        """The rows of a file. ValueError for what is no such table."""
        check_encoding(path)
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            lines = lines_of(file)
            if self.columns is None:
                first = next((line for line in lines if line is None or line.strip()), "")
                if first is None:
                    raise ValueError(TOO_LONG)
                columns = self.cells(first) or self.plain(first)
            else:
                columns = list(self.columns)
            if twice := [name for name in columns if columns.count(name) > 1 and name]:
                raise ValueError(f"its first line names the column {twice[0]!r} twice")
            self.found = columns
            place = columns.index(self.image_column) if self.image_column in columns else None
            waiting: deque[str | None] = deque()
            while (line := waiting.popleft() if waiting else next(lines, "")) != "":
                if line is None:
                    yield TOO_LONG
                elif line.strip("\r\n"):
                    cells = self.row(line, len(columns), place, waiting, lines)
                    yield cells if isinstance(cells, str) else dict(zip(columns, cells, strict=True))

    def row(
        self, line: str, count: int, place: int | None, waiting: deque[str | None], lines: Iterator[str | None]
    ) -> list[str] | str:
        """The cells of the row that begins with a line, of those `waiting` and to come; or why there are none."""
        if len(found := self.cells(line)) == count:
            return found
        if self.quoting == "auto" and self.begins_a_text(line):
            whole, alone = line, self.is_row(line, count, place)
            for number in range(LONGEST_ROW):
                if number == len(waiting):
                    waiting.append(next(lines, ""))
                more = waiting[number]
                if not more or len(whole) > LONGEST_LINE:
                    break
                whole += more
                ends = len(found := self.cells(whole)) == count
                # The line that ends a text may look like a row; but not where the one that began it does too.
                if (alone or not ends) and self.is_row(more, count, place):
                    break
                if ends:
                    for _ in range(number + 1):
                        waiting.popleft()
                    return found
        found = self.plain(line)
        if len(found) == count:
            return found
        return (
            f"it has {len(found)} cells where there are {count} columns; put a caption that holds {self.delimiter!r} "
            "in quotes, and double the quotes in it"
        )

    def cells(self, line: str) -> list[str]:
        """The cells of a whole row; [] where its quotes are not those of a table."""
        if '"' not in line or self.quoting == "none":
            return self.plain(line)
        try:
            return next(csv.reader(io.StringIO(line, newline=""), delimiter=self.delimiter, strict=True), [])
        except csv.Error:
            return []

    def plain(self, line: str) -> list[str]:
        return line.rstrip("\r\n").split(self.delimiter)

    def begins_a_text(self, line: str) -> bool:
        """Whether a cell of a line begins with a quote that it does not end."""
        return any(cell.startswith('"') for cell in self.plain(line)) and not self.cells(line)

    def is_row(self, line: str, count: int, place: int | None) -> bool:
        """Whether a line is a row by itself, and not the middle of a text: it names a picture where rows do."""
        found = self.cells(line) or self.plain(line)
        return len(found) == count and (self.delimiter == "\t" or place is None or self.is_image(found[place]))


def check_encoding(path: Path) -> None:
    """Raises ValueError for a file in UTF-16 or UTF-32, of which every row would be broken."""
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\0" in start[:16] and start.strip(b"\0")):
        raise ValueError("it is not UTF-8, but looks like UTF-16: save it as UTF-8")


def json_lines(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file; empty lines are none."""
    check_encoding(path)
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for line in lines_of(file):
            if line is None:
                yield TOO_LONG
            elif SURROGATE.search(line):
                yield "it is not UTF-8; save the table as UTF-8"
            elif line.strip():
                try:
                    row = json.loads(line)
                    yield row if isinstance(row, dict) else "it is no JSON object"
                except (ValueError, RecursionError) as error:
                    yield f"it is no JSON: {error}"


def parquet(path: Path, needed: Sequence[str]) -> Iterator[Row]:
    """The `needed` columns of a Parquet file, which hold texts or lists of texts. ValueError where they do not, where
    they unpack to much more than the file, or where the library for it is not installed."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile, read_metadata
    except ImportError as error:
        raise ValueError("Parquet needs a library that is not installed: install the extra `tables`") from error
    room = max(ALWAYS_ROOM, MOST_TIMES * size_of_file(path))
    try:
        metadata = read_metadata(path)
        schema = metadata.schema.to_arrow_schema()
        if not {*needed} <= {*schema.names}:
            yield dict.fromkeys(schema.names)
            return
        for name in needed:
            if not holds_texts(schema.field(name).type):
                kind = str(schema.field(name).type)[:200]
                more = "; pictures in a table are not read: write them to files first" if "bytes" in kind else ""
                raise ValueError(f"its column {name!r} holds {kind}, not texts{more}")
        columns = [metadata.schema.column(number).path for number in range(metadata.num_columns)]
        mine = [n for n, one in enumerate(columns) if any(one == name or one.startswith(f"{name}.") for name in needed)]
        parts = [metadata.row_group(g).column(n) for g in range(metadata.num_row_groups) for n in mine]
        check_room(room, sum(part.total_uncompressed_size + TEXT_BYTES * part.num_values for part in parts))
        # A text that many rows repeat is unpacked once, and counted before there is one for each of them.
        with ParquetFile(path, metadata=metadata, read_dictionary=[columns[n] for n in mine]) as file:
            for batch in file.iter_batches(batch_size=256, columns=list(needed)):
                cells = [batch.column(name) for name in needed]
                room -= sum(map(unpacked_bytes, cells))
                check_room(room)
                for row in zip(*(column.to_pylist() for column in cells), strict=True):
                    yield dict(zip(needed, row, strict=True))
    except (ArrowException, OSError, KeyError) as error:
        if is_refusal(error):
            raise
        raise ValueError(" ".join(str(error).split())) from error


def check_room(room: int, taken: int = 0) -> None:
    if taken > room:
        raise ValueError(f"it unpacks to over {MOST_TIMES} times its size, as no list of pictures does")


def holds_texts(kind: Any) -> bool:
    """Whether a column of this type of Arrow has a text, or a list of them, in each row."""
    from pyarrow import types

    inner = kind.value_type if types.is_list(kind) or types.is_large_list(kind) else kind
    inner = inner.value_type if types.is_dictionary(inner) else inner
    return types.is_string(inner) or types.is_large_string(inner)


def unpacked_bytes(column: Any) -> int:
    """How much the texts of a column are, of which each is held once, when there is one for each row."""
    from pyarrow.compute import call_function

    texts = column if hasattr(column, "dictionary") else column.flatten()
    lengths = call_function("binary_length", [texts.dictionary]).take(texts.indices)
    return (call_function("sum", [lengths]).as_py() or 0) + TEXT_BYTES * len(texts)


DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*DELIMITERS, ".jsonl", ".parquet")


class TableSource(Source):
    """Captioned pictures named by the rows of a table, `shard_size` rows to an input shard.

    `image_column`: the path of the picture, absolute or from `image_folder` (by default the table's own folder).
    `caption_column`: a text, or a list of texts (in CSV as JSON or Python write it). Of CSV and TSV: `columns`, the
    names where the first line has none; `delimiter` between cells, None: by the suffix; `quoting`: see `Separated`.
    """

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        caption_column: str = "caption",
        image_folder: str | None = None,
        shard_size: int = 2_000,
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        quoting: Literal["auto", "none"] = "auto",
    ) -> None:
        check_shard_size(shard_size)
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise SettingsError(f"source.delimiter is one character between cells, such as ';', got {delimiter!r}")
        self.path = Path(path).expanduser()
        self.image_column, self.caption_column, self.shard_size = image_column, caption_column, shard_size
        self.image_folder = Path(image_folder).expanduser() if image_folder else self.path.parent
        self.columns, self.delimiter = columns, delimiter
        self.quoting: Quoting = quoting
        if self.suffix not in DELIMITERS and (columns is not None or delimiter is not None or quoting != "auto"):
            raise SettingsError(
                f"source.columns, delimiter and quoting are of {' and '.join(DELIMITERS)} files, {self.path} is none"
            )
        if columns is not None:
            for name, setting in ((image_column, "image_column"), (caption_column, "caption_column")):
                if name not in columns:
                    raise SettingsError(f"source.{setting}={name} is none of source.columns={list(columns)}")
        self._rows: list[tuple[str, object, str | None]] | None = None

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def identity(self) -> Mapping[str, object]:
        names = ("image_column", "caption_column", "shard_size")
        paths = {"path": str(self.path.resolve()), "image_folder": str(self.image_folder.resolve())}
        more = {"columns": self.columns and [*self.columns], "delimiter": self.delimiter}
        more |= {"quoting": None if self.quoting == "auto" else self.quoting}
        return {
            "kind": "table",
            **paths,
            **{name: getattr(self, name) for name in names},
            **{name: value for name, value in more.items() if value is not None},
            "rows": len(self.rows()),
        }

    def rows(self) -> list[tuple[str, object, str | None]]:
        """(path of the picture, caption or captions, why there is none of the two) of every row.

        ValueError for another kind of file, a damaged one, or a missing column.
        """
        if self._rows is None:
            if self.path.is_dir():
                raise ValueError(f"{self.path} is a folder: name the table in it, source.path=FILE")
            if self.suffix not in SUFFIXES:
                raise ValueError(f"{self.path}: a table is one of {', '.join(SUFFIXES)}{self.if_json()}")
            rows: list[tuple[str, object, str | None]] = []
            columns: dict[str, None] = {}
            try:
                size_of_file(self.path)
                separated = self.separated() if self.suffix in DELIMITERS else None
                unreadable = 0
                for number, row in enumerate(separated.rows(self.path) if separated else self.read_rows(), start=1):
                    columns |= {} if isinstance(row, str) else dict.fromkeys(row)
                    rows.append((f"row {number}", None, row) if isinstance(row, str) else self.named(number, row))
                    reason = rows[-1][2]
                    unreadable += reason is not None
                    if unreadable > MOST_UNREADABLE and unreadable > number / 2:
                        if columns and self.image_column not in columns:
                            break  # which is told below
                        raise ValueError(f"{unreadable:,} of its first {number:,} rows are none: {reason}")
                columns |= dict.fromkeys(separated.found if separated else ())
            except ValueError as error:
                raise ValueError(f"{self.path} cannot be read as a table: {error}") from error
            for column, setting in ((self.image_column, "image_column"), (self.caption_column, "caption_column")):
                if columns and column not in columns:
                    raise ValueError(
                        f"{self.path} has no column {column!r}, only {list(columns)[:MOST_NAMED]}; set source.{setting}"
                        f"{self.cure([*columns])}"
                    )
            self._rows = rows
        return self._rows

    def separated(self) -> Separated:
        delimiter = self.delimiter or DELIMITERS[self.suffix]
        return Separated(delimiter, self.quoting, self.columns, self.image_column, self.is_image)

    def read_rows(self) -> Iterator[Row]:
        if self.suffix == ".jsonl":
            return json_lines(self.path)
        return parquet(self.path, list(dict.fromkeys((self.image_column, self.caption_column))))

    def named(self, number: int, row: Mapping[str, object]) -> tuple[str, object, str | None]:
        """What `rows` has of a row."""
        image, caption = row.get(self.image_column), row.get(self.caption_column)
        if not isinstance(image, str) or not image.strip():
            got = "" if image in (None, "") else f", but {in_brief(image)}, which is no path"
            return f"row {number}", None, f"it names no picture in {self.image_column!r}{got}"
        if isinstance(caption, str) and SURROGATE.search(caption) and self.suffix in DELIMITERS:
            return image, None, "no caption: the row is not UTF-8; save the table as UTF-8"
        return image, caption, None

    def is_image(self, text: str) -> bool:
        """Whether a cell is the path of a picture, as far as its name or the disk says."""
        if os.path.splitext(text)[1].lower() in PICTURES or text.startswith(("http://", "https://")):
            return True
        return bool(text.strip()) and "\0" not in text and os.path.isfile(self.image_folder / text)

    def cure(self, columns: list[str]) -> str:
        """What else may be wrong with a CSV or TSV file that lacks a column, by its first line."""
        if self.suffix not in DELIMITERS or self.columns is not None:
            return ""
        used = self.delimiter or DELIMITERS[self.suffix]
        for other, name in ((";", "';'"), ("\t", "'\\t'"), (",", "','"), ("|", "'|'")):
            if len(columns) == 1 and other != used and other in columns[0]:
                return f". Its first line has {name}: if that stands between cells, source.delimiter={quoted(other)}"
        if any(self.is_image(name) or len(name) > LONGEST_NAME or " " in name.strip() for name in columns):
            order = ",".join(self.guess(columns))
            return f". If the first line is a row and no names, say which columns there are: 'source.columns=[{order}]'"
        return ""

    def guess(self, columns: list[str]) -> list[str]:
        """Names for the columns of a file whose first line is a row."""
        image = next((place for place, cell in enumerate(columns) if self.is_image(cell)), None)
        rest = [place for place in range(len(columns)) if place != image]
        caption = max(rest, key=lambda place: len(columns[place]), default=None)
        names = {image: self.image_column, caption: self.caption_column}
        return [names.get(place, f"column_{place}") for place in range(len(columns))]

    def if_json(self) -> str:
        if self.suffix != ".json":
            return ""
        return "; write a .json of many pictures as a .jsonl, one object with a path and a caption in each line"

    def shards(self) -> list[str]:
        if not self.rows():
            raise FileNotFoundError(f"{self.path} has no rows")
        return [f"rows from {first}" for first in range(0, len(self.rows()), self.shard_size)]

    def keys(self) -> Sequence[str]:
        return [key for key, _, problem in self.rows() if problem is None]

    def of_shard(self, shard: int) -> list[tuple[str, object, str | None]]:
        return self.rows()[shard * self.shard_size : (shard + 1) * self.shard_size]

    def state(self, shard: int) -> str:
        rows = self.of_shard(shard)
        words = blake2b(repr(rows).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
        return words + state_of([self.place_of(key) for key, _, problem in rows if problem is None])

    def place_of(self, key: str) -> Path:
        """Where the picture that a row names lies: as it says, or where its folders are told apart by backslashes."""
        path = self.image_folder / key
        if "\\" in key and "\0" not in key and not os.path.exists(path):
            return self.image_folder / key.replace("\\", "/")
        return path

    def read(self, shard: int) -> Iterator[Found]:
        for key, caption, problem in self.of_shard(shard):
            if problem is not None:
                yield Unreadable(key, problem)
                continue
            try:
                captions = captions_in(as_texts(caption), self.caption_column)
                if not captions:
                    got = "" if caption in (None, "") else f", but {in_brief(caption)}"
                    yield Unreadable(key, f"no caption: the row holds none in {self.caption_column!r}{got}")
                    continue
                yield CaptionedImage(key, content_of(self.place_of(key)), captions)
            except (OSError, ValueError) as error:
                if is_refusal(error) and not isinstance(error, PermissionError):
                    raise
                yield Unreadable(key, f"cannot be read: {error}")


def quoted(text: str) -> str:
    """A setting's text as it is typed on a command line."""
    return "'\"\\t\"'" if text == "\t" else f"'\"{text}\"'"


def as_texts(caption: object) -> object:
    """A cell as a text or a list of texts, which CSV holds as JSON or as Python writes it; None for a text that stands
    for an empty cell."""
    if not isinstance(caption, str):
        return caption
    if caption.strip().lower() in EMPTY_CELLS:
        return None
    text = caption.strip()
    if text.startswith("[") and text.endswith("]") and len(text) <= LONGEST_LIST:
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text)
            except (ValueError, RecursionError, SyntaxError, MemoryError):
                continue
            if isinstance(found, list) and (not found or any(isinstance(one, str) for one in found)):
                return found
    return caption
