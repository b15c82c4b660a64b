"""A table of pictures and captions: CSV, TSV, JSONL or Parquet, one row a picture, its file named by a column."""

import hashlib
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from microdit.data.sources.below import state_of
from microdit.data.sources.captioned import (
    CaptionedImage,
    Found,
    Source,
    Unreadable,
    Unwanted,
    check_shard_size,
    content_of,
)
from microdit.data.sources.captions import (
    Bounds,
    as_texts,
    bounds,
    captions_in,
    check_numbers,
    in_brief,
    names_of,
    quality_in,
)
from microdit.data.sources.images import SUFFIXES as PICTURES
from microdit.data.sources.images import FilteredImageError
from microdit.data.sources.rows import DELIMITERS, SURROGATE, Quoting, Row, Separated, json_lines, parquet
from microdit.files import is_refusal, near_path, size_of_file
from microdit.kinds import Copied, SettingsError

LONGEST_NAME = 40  # characters, that a column's name has and a caption may pass
MOST_NAMED = 50  # columns in a message
MOST_UNREADABLE = 100_000  # rows, of a table that has fewer others
SUFFIXES = (*DELIMITERS, ".jsonl", ".parquet")

# Of a name by a number or a name: nothing else is taken from them, and no number is widened without end.
NAME_PATTERN = re.compile(r"([^{}]|\{(row(:0?[1-9][0-9]?d?)?|name|stem|crc32|md5|sha1|sha256)\}){1,200}")


class TableSource(Source):
    """Captioned pictures named by the rows of a table, `shard_size` rows to an input shard.

    `image_column`: the path of the picture, absolute or from `image_folder` (by default the table's own folder).
    `caption_column`: a text, or a list of texts (in CSV as JSON or Python write it); several columns give several
    captions. Of CSV and TSV: `columns`, the names where the first line has none; `delimiter` between cells, None: by
    the suffix; `quoting`: see `Separated`. `image_name`: how the file of a picture is called where the column has its
    address, see `file_name`. `least`, `most`: by column, what numbers in a row may be. `quality_column`: how good each
    picture is, a number from 0 to 1, such as its rank by a reward; None: that is not known.
    """

    def __init__(
        self,
        path: Copied,
        image_column: str = "image",
        caption_column: str | Sequence[str] = "caption",
        image_folder: Copied | None = None,
        shard_size: int = 2_000,
        columns: Sequence[str] | None = None,
        delimiter: str | None = None,
        quoting: Literal["auto", "none"] = "auto",
        image_name: str | None = None,
        least: Bounds = None,
        most: Bounds = None,
        quality_column: str | None = None,
    ) -> None:
        check_shard_size(shard_size)
        if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
            raise SettingsError(f"source.delimiter is one character between cells, such as ';', got {delimiter!r}")
        self.path = Path(path).expanduser()
        self.image_column, self.shard_size = image_column, shard_size
        self.image_folder = Path(image_folder).expanduser() if image_folder else self.path.parent
        self.columns, self.delimiter = columns, delimiter
        self.quoting: Quoting = quoting
        if self.suffix not in DELIMITERS and (columns is not None or delimiter is not None or quoting != "auto"):
            raise SettingsError(
                f"source.columns, delimiter and quoting are of {' and '.join(DELIMITERS)} files, {self.path} is none"
            )
        self.caption_columns = names_of(caption_column)
        if not self.caption_columns:
            raise SettingsError("source.caption_column names a column, or a list of them, got an empty list")
        self.quality_column = quality_column
        self.least, self.most, self.image_name = least or {}, most or {}, image_name
        if image_name is not None:
            file_name(image_name, 0, "http://example.org/a.jpg")
        if columns is not None:
            for name, setting in self.needed():
                if name not in columns:
                    raise SettingsError(f"source.{setting}={name} is none of source.columns={list(columns)}")
        self._rows: list[tuple[str, object, Unreadable | Unwanted | None]] | None = None
        self._qualities: dict[str, float] = {}

    def needed(self) -> list[tuple[str, str]]:
        """Every column that must be there, with the setting that names it."""
        names = [(self.image_column, "image_column"), *((name, "caption_column") for name in self.caption_columns)]
        names += [] if self.quality_column is None else [(self.quality_column, "quality_column")]
        return names + [(name, setting) for setting in ("least", "most") for name in getattr(self, setting)]

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def identity(self) -> Mapping[str, object]:
        names = ("image_column", "shard_size")
        one = self.caption_columns[0] if len(self.caption_columns) == 1 else self.caption_columns
        paths = {"path": str(self.path.resolve()), "image_folder": str(self.image_folder.resolve())}
        more = {"columns": self.columns and [*self.columns], "delimiter": self.delimiter}
        more |= {"quoting": None if self.quoting == "auto" else self.quoting, "image_name": self.image_name}
        more |= {"quality_column": self.quality_column}
        return {
            "kind": "table",
            **paths,
            **{name: getattr(self, name) for name in names},
            "caption_column": one,
            **bounds(self.least, self.most),
            **{name: value for name, value in more.items() if value is not None},
            "rows": len(self.rows()),
        }

    def rows(self) -> list[tuple[str, object, Unreadable | Unwanted | None]]:
        """(path of the picture, caption or captions, why there is none of the two) of every row.

        ValueError for another kind of file, a damaged one, or a missing column.
        """
        if self._rows is None:
            if self.path.is_dir():
                raise ValueError(f"{self.path} is a folder: name the table in it, source.path=FILE")
            if not self.path.exists():
                raise FileNotFoundError(f"{self.path}: there is no such table{near_path(self.path)}")
            if self.suffix not in SUFFIXES:
                raise ValueError(f"{self.path}: a table is one of {', '.join(SUFFIXES)}{self.if_json()}")
            rows: list[tuple[str, object, Unreadable | Unwanted | None]] = []
            columns: dict[str, None] = {}
            try:
                size_of_file(self.path)
                separated = self.separated() if self.suffix in DELIMITERS else None
                unreadable = 0
                for number, row in enumerate(separated.rows(self.path) if separated else self.read_rows(), start=1):
                    columns |= {} if isinstance(row, str) else dict.fromkeys(row)
                    rows.append(unreadable_row(number, row) if isinstance(row, str) else self.named(number, row))
                    problem = rows[-1][2]
                    unreadable += isinstance(problem, Unreadable)
                    if unreadable > MOST_UNREADABLE and unreadable > number / 2:
                        if columns and self.image_column not in columns:
                            break  # which is told below
                        raise ValueError(
                            f"{unreadable:,} of its first {number:,} rows are none: {problem and problem.reason}"
                        )
                columns |= dict.fromkeys(separated.found if separated else ())
            except ValueError as error:
                raise ValueError(f"{self.path} cannot be read as a table: {error}") from error
            for column, setting in self.needed():
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
        numbers = [*self.least, *self.most, *([] if self.quality_column is None else [self.quality_column])]
        return parquet(self.path, [self.image_column, *self.caption_columns], numbers)

    def named(self, number: int, row: Mapping[str, object]) -> tuple[str, object, Unreadable | Unwanted | None]:
        """What `rows` has of a row."""
        image, cells = row.get(self.image_column), [row.get(name) for name in self.caption_columns]
        if not isinstance(image, str) or not image.strip():
            got = "" if image in (None, "") else f", but {in_brief(image)}, which is no path"
            return unreadable_row(number, f"it names no picture in {self.image_column!r}{got}")
        key = image if self.image_name is None else file_name(self.image_name, number - 1, image)
        try:
            check_numbers(row, self.least, self.most)
        except FilteredImageError as error:
            return key, None, Unwanted(key, str(error))
        try:
            if (quality := quality_in(row, self.quality_column)) is not None:
                self._qualities[key] = quality
        except ValueError as error:
            return key, None, Unreadable(key, str(error))
        if self.suffix in DELIMITERS and any(isinstance(cell, str) and SURROGATE.search(cell) for cell in cells):
            return key, None, Unreadable(key, "no caption: the row is not UTF-8; save the table as UTF-8")
        return key, cells[0] if len(cells) == 1 else cells, None

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
        names = {image: self.image_column, caption: self.caption_columns[0]}
        return [names.get(place, f"column_{place}") for place in range(len(columns))]

    def if_json(self) -> str:
        if self.suffix != ".json":
            return ""
        return (
            "; write a .json of many pictures as a .jsonl, one object with a path and a caption in each line, or read "
            f"the pictures from their folder: source=folder source.path=FOLDER source.captions={self.path} "
            "source.image_column=KEY source.caption_column=KEY"
        )

    def place(self) -> Path:
        return self.path

    def shards(self) -> list[str]:
        if not self.rows():
            raise FileNotFoundError(f"{self.path} has no rows")
        return [f"rows from {first}" for first in range(0, len(self.rows()), self.shard_size)]

    def keys(self) -> Sequence[str]:
        return [key for key, _, problem in self.rows() if problem is None]

    def of_shard(self, shard: int) -> list[tuple[str, object, Unreadable | Unwanted | None]]:
        return self.rows()[shard * self.shard_size : (shard + 1) * self.shard_size]

    def state(self, shard: int) -> str:
        rows = self.of_shard(shard)
        told = rows if self.quality_column is None else [rows, [self._qualities.get(key) for key, _, _ in rows]]
        words = blake2b(repr(told).encode("utf-8", "backslashreplace"), digest_size=8).hexdigest()
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
                yield problem
                continue
            try:
                several = caption if len(self.caption_columns) > 1 and isinstance(caption, list) else [caption]
                cells = map(as_texts, several)
                captions = captions_in(dict(zip(self.caption_columns, cells, strict=True)), self.caption_columns)
                if not captions:
                    got = "" if caption in (None, "") else f", but {in_brief(caption)}"
                    columns = " or ".join(map(repr, self.caption_columns))
                    yield Unreadable(key, f"no caption: the row holds none in {columns}{got}")
                    continue
                yield CaptionedImage(key, content_of(self.place_of(key)), captions, self._qualities.get(key))
            except (OSError, ValueError) as error:
                if is_refusal(error) and not isinstance(error, PermissionError):
                    raise
                yield Unreadable(key, f"cannot be read: {error}")


def unreadable_row(number: int, reason: str) -> tuple[str, object, Unreadable]:
    """What `rows` has of a row that is none."""
    return f"row {number}", None, Unreadable(f"row {number}", reason)


def file_name(pattern: str, row: int, address: str) -> str:
    """The file of a picture by the pattern that a program has called it by: {row} counts from 0 (as in {row:08d}),
    {name} and {stem} are the end of the picture's address, {md5}, {sha1}, {sha256} and {crc32} are of all of it.
    SettingsError for another pattern."""
    end, content = PurePosixPath(urlsplit(address).path or address), address.encode("utf-8", "backslashreplace")
    hashes = {name: hashlib.new(name, content, usedforsecurity=False).hexdigest() for name in ("md5", "sha1", "sha256")}
    known = {"row": row, "name": end.name, "stem": end.stem, "crc32": zlib.crc32(content), **hashes}
    if not NAME_PATTERN.fullmatch(pattern):
        raise SettingsError(
            f"source.image_name={pattern} is no pattern of {', '.join(f'{{{name}}}' for name in known)}, such as "
            "'{row:08d}.jpg'"
        )
    return pattern.format_map(known)


def quoted(text: str) -> str:
    """A setting's text as it is typed on a command line."""
    return "'\"\\t\"'" if text == "\t" else f"'\"{text}\"'"
