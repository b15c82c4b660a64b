"""A table of pictures and captions: CSV, TSV, JSONL or Parquet, one row a picture, its file named by a column."""

import ast
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Literal

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
from microdit.data.sources.rows import SURROGATE, Quoting, Row, Separated, json_lines, parquet
from microdit.files import is_refusal, size_of_file
from microdit.kinds import Copied, SettingsError

LONGEST_NAME = 40  # characters, that a column's name has and a caption may pass
LONGEST_LIST = 1 << 20  # characters of a list of captions in a cell
MOST_NAMED = 50  # columns in a message
MOST_UNREADABLE = 100_000  # rows, of a table that has fewer others
# What programs write where there is nothing.
EMPTY_CELLS = frozenset(("nan", "none", "null", "n/a", "<na>"))

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
        path: Copied,
        image_column: str = "image",
        caption_column: str = "caption",
        image_folder: Copied | None = None,
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

    def place(self) -> Path:
        return self.path

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
