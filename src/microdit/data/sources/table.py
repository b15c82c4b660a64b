"""A table of pictures and captions: CSV, TSV, JSONL or Parquet, one row a picture, its file named by a column."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from microdit.data.sources.captioned import (
    CaptionedImage,
    Source,
    Unreadable,
    captions_in,
    check_shard_size,
    content_of,
)

Row = Mapping[str, object] | str  # or why it cannot be read


def separated(path: Path, separator: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file; ValueError where its quotes do not end."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, delimiter=separator, strict=True)
        try:
            columns = next(lines, [])
            for cells in filter(None, lines):
                if len(cells) == len(columns):
                    yield dict(zip(columns, cells, strict=True))
                else:
                    yield (
                        f"it has {len(cells)} cells where the first line has {len(columns)}; put a caption that holds "
                        f"{separator!r} in quotes"
                    )
        except csv.Error as error:
            raise ValueError(f"line {lines.line_num}: {error}") from error


def json_lines(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file; empty lines are none."""
    with path.open(encoding="utf-8-sig") as file:
        for line in filter(str.strip, file):
            try:
                row = json.loads(line)
                yield row if isinstance(row, dict) else "it is no JSON object"
            except (ValueError, RecursionError) as error:
                yield f"it is no JSON: {error}"


def parquet(path: Path) -> Iterator[Row]:
    """The rows of a Parquet file. ValueError where the library for it is not installed."""
    try:
        table = pd.read_parquet(path)
    except ImportError as error:
        raise ValueError("Parquet needs a library that is not installed: install the extra `tables`") from error
    for cells in zip(*(table[column] for column in table.columns), strict=True):
        yield dict(zip(map(str, table.columns), cells, strict=True))


READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": lambda path: separated(path, ","),
    ".tsv": lambda path: separated(path, "\t"),
    ".jsonl": json_lines,
    ".parquet": parquet,
}


class TableSource(Source):
    """Captioned pictures named by the rows of a table, `shard_size` rows to an input shard.

    `image_column`: the path of the picture, absolute or from `image_folder` (by default the table's own folder).
    `caption_column`: a text, or a list of texts (in CSV as JSON).
    """

    def __init__(
        self,
        path: str,
        image_column: str = "image",
        caption_column: str = "caption",
        image_folder: str | None = None,
        shard_size: int = 2_000,
    ) -> None:
        check_shard_size(shard_size)
        self.path = Path(path).expanduser()
        self.image_column, self.caption_column, self.shard_size = image_column, caption_column, shard_size
        self.image_folder = Path(image_folder).expanduser() if image_folder else self.path.parent
        self._rows: list[tuple[str, object, str | None]] | None = None

    @property
    def identity(self) -> Mapping[str, object]:
        names = ("image_column", "caption_column", "shard_size")
        paths = {"path": str(self.path.resolve()), "image_folder": str(self.image_folder.resolve())}
        return {"kind": "table", **paths, **{name: getattr(self, name) for name in names}, "rows": len(self.rows())}

    def rows(self) -> list[tuple[str, object, str | None]]:
        """(path of the picture, caption or captions, why there is none of the two) of every row.

        ValueError for another kind of file, a damaged one, or a missing column.
        """
        if self._rows is None:
            if self.path.suffix.lower() not in READERS:
                raise ValueError(f"{self.path}: a table is one of {', '.join(READERS)}")
            rows: list[tuple[str, object, str | None]] = []
            columns: dict[str, None] = {}
            try:
                for number, row in enumerate(READERS[self.path.suffix.lower()](self.path), start=1):
                    if isinstance(row, str):
                        rows.append((f"row {number}", None, row))
                        continue
                    columns |= dict.fromkeys(row)
                    image = row.get(self.image_column)
                    if isinstance(image, str) and image:
                        rows.append((image, row.get(self.caption_column), None))
                    else:
                        rows.append((f"row {number}", None, f"it names no picture in {self.image_column!r}"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.path} is not UTF-8 ({error}): save it as UTF-8") from error
            except ValueError as error:
                raise ValueError(f"{self.path} cannot be read as a table: {error}") from error
            for column, setting in ((self.image_column, "image_column"), (self.caption_column, "caption_column")):
                if columns and column not in columns:
                    raise ValueError(
                        f"{self.path} has no column {column!r}, only {list(columns)}; set source.{setting}"
                    )
            self._rows = rows
        return self._rows

    def shards(self) -> list[str]:
        if not self.rows():
            raise FileNotFoundError(f"{self.path} has no rows")
        return [f"rows from {first}" for first in range(0, len(self.rows()), self.shard_size)]

    def read(self, shard: int) -> Iterator[CaptionedImage | Unreadable]:
        for key, caption, problem in self.rows()[shard * self.shard_size : (shard + 1) * self.shard_size]:
            if problem is not None:
                yield Unreadable(key, problem)
                continue
            try:
                captions = captions_in(as_texts(caption), self.caption_column)
                if not captions:
                    yield Unreadable(key, f"no caption: the row holds none in {self.caption_column!r}")
                    continue
                yield CaptionedImage(key, content_of(self.image_folder / key), captions)
            except (OSError, ValueError) as error:
                yield Unreadable(key, f"cannot be read: {error}")


def as_texts(caption: object) -> object:
    """A cell as a text or a list of texts: Parquet gives arrays, and CSV holds lists as JSON."""
    if isinstance(caption, str) and caption.startswith("["):
        try:
            return json.loads(caption)
        except (ValueError, RecursionError):
            return caption
    return caption.tolist() if isinstance(caption, np.ndarray) else caption
