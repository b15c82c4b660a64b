"""A table of pictures and captions: CSV, TSV, JSONL or Parquet, one row a picture, its file named by a column."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from microdit.data.sources.captioned import (
    CaptionedImage,
    Source,
    Unreadable,
    captions_in,
    check_shard_size,
    content_of,
)
from microdit.files import is_refusal, size_of_file
from microdit.kinds import Pictures

LONGEST_LINE = 1 << 24  # characters; a hundred captions as long as any have fewer
MOST_TIMES, ALWAYS_ROOM = 100, 1 << 26  # of its size, or bytes, may a table unpack to
TEXT_BYTES = 50  # that a text takes, however short it is
MOST_NAMED = 50  # columns in a message
Row = Mapping[str, object] | str  # or why it cannot be read


def lines_of(file: TextIO) -> Iterator[str]:
    """The lines of a file. ValueError for one that is longer than any row."""
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"a line has {LONGEST_LINE:,} characters or more")
        yield line


def separated(path: Path, separator: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file; ValueError where its quotes do not end."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(lines_of(file), delimiter=separator, strict=True)
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
        for line in filter(str.strip, lines_of(file)):
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
                raise ValueError(f"its column {name!r} holds {str(schema.field(name).type)[:200]}, not texts")
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


READERS: Mapping[str, Callable[[Path, Sequence[str]], Iterator[Row]]] = {
    ".csv": lambda path, _: separated(path, ","),
    ".tsv": lambda path, _: separated(path, "\t"),
    ".jsonl": lambda path, _: json_lines(path),
    ".parquet": parquet,
}


class TableSource(Source):
    """Captioned pictures named by the rows of a table, `shard_size` rows to an input shard.

    `image_column`: the path of the picture, absolute or from `image_folder` (by default the table's own folder).
    `caption_column`: a text, or a list of texts (in CSV as JSON).
    """

    def __init__(
        self,
        path: Pictures,
        image_column: str = "image",
        caption_column: str = "caption",
        image_folder: Pictures | None = None,
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
                size_of_file(self.path)
                needed = list(dict.fromkeys((self.image_column, self.caption_column)))
                for number, row in enumerate(READERS[self.path.suffix.lower()](self.path, needed), start=1):
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
                        f"{self.path} has no column {column!r}, only {list(columns)[:MOST_NAMED]}; set source.{setting}"
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
    """A cell as a text or a list of texts, which CSV holds as JSON."""
    if isinstance(caption, str) and caption.startswith("["):
        try:
            return json.loads(caption)
        except (ValueError, RecursionError):
            return caption
    return caption
