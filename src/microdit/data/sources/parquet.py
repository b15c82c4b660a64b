"""Parquet files that hold the pictures themselves, as data sets on the Hugging Face hub do."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from microdit.data.sources.below import files_below, state_of
from microdit.data.sources.captioned import (
    LARGEST_FILE,
    CaptionedImage,
    Ignored,
    Picture,
    Source,
    Unreadable,
    Unwanted,
    content_of,
)
from microdit.data.sources.captions import (
    CAPTION_COLUMN,
    Bounds,
    as_texts,
    bounds,
    captions_in,
    check_numbers,
    in_brief,
    names_of,
    quality_in,
    told_in,
)
from microdit.data.sources.folder import TABLES
from microdit.data.sources.images import FilteredImageError
from microdit.data.sources.rows import ALWAYS_ROOM, MOST_TIMES, NO_PARQUET, TEXT_BYTES, check_room
from microdit.files import is_refusal, near_path, size_of_file
from microdit.kinds import Copied, SettingsError

SUFFIX = ".parquet"
ROWS_AT_ONCE = 16  # each may hold a photograph
MOST_NAMED = 50  # columns in a message


class ParquetSource(Source):
    """Captioned pictures in the rows of Parquet files; every file is one input shard.

    `path`: a file, a folder of them, however deep, or a list of these. `image_column`: bytes of a picture, or
    {bytes, path} as the Hugging Face hub has it, where a path without bytes is read from the file's own folder.
    `caption_column`: a text or a list of texts, also {a.b} below other columns; several give several captions.
    `least`, `most`: by column, what numbers in a row may be. `quality_column`: how good each picture is, a number from
    0 to 1, such as its rank by a reward; None: that is not known.
    """

    def __init__(
        self,
        path: Copied | Sequence[Copied],
        image_column: str = "image",
        caption_column: str | Sequence[str] = CAPTION_COLUMN,
        least: Bounds = None,
        most: Bounds = None,
        quality_column: str | None = None,
    ) -> None:
        self.paths = [Path(one).expanduser() for one in ([path] if isinstance(path, str) else path)]
        self.image_column, self.caption_columns = image_column, names_of(caption_column)
        if not self.caption_columns:
            raise SettingsError("source.caption_column names a column, or a list of them, got an empty list")
        self.quality_column = quality_column
        self.least, self.most = least or {}, most or {}
        self._files: list[Path] | None = None
        self._others: list[Unreadable | Ignored] = []

    @property
    def identity(self) -> Mapping[str, object]:
        captions = self.caption_columns[0] if len(self.caption_columns) == 1 else self.caption_columns
        columns = {"image_column": self.image_column, "caption_column": captions}
        paths = [str(path.resolve()) for path in self.paths]
        columns |= {} if self.quality_column is None else {"quality_column": self.quality_column}
        return {"kind": "parquet", "path": paths, **columns, **bounds(self.least, self.most)}

    def place(self) -> Path | None:
        return self.paths[0] if len(self.paths) == 1 else None

    def shards(self) -> list[str]:
        return list(map(str, self.files()))

    def files(self) -> list[Path]:
        """Every file, in order. FileNotFoundError where there is none, ValueError where the first has other columns."""
        if self._files is None:
            found: dict[Path, None] = {}
            for path in self.paths:
                if not path.is_dir():
                    found[path] = None
                    continue
                names, others = files_below(path)
                found |= {path / name: None for name in names if name.lower().endswith(SUFFIX)}
                self._others += others
                self._others += (
                    Ignored(name, "no .parquet, which this source reads")
                    for name in names
                    if not name.lower().endswith(SUFFIX)
                )
            if missing := [path for path in found if not path.is_file()]:
                raise FileNotFoundError(f"{missing[0]}: there is no such file or folder{near_path(missing[0])}")
            if not found:
                raise FileNotFoundError(f"{self.paths[0]} holds no {SUFFIX} file{self.instead()}")
            with open_parquet(next(iter(found))) as file:
                self.columns_of(file.schema_arrow, next(iter(found)))
            self._files = list(found)
        return self._files

    def instead(self) -> str:
        """What lies in a folder without such files, with the source that reads it."""
        names = [item.key for item in self._others]
        if table := next((name for name in names if Path(name).name.startswith("metadata.")), None):
            return f", but {table}: try source=imagefolder source.path={self.paths[0] / table}"
        if table := next((name for name in names if name.lower().endswith(TABLES)), None):
            return f", but {table}, for which there is source=table"
        return f", but {', '.join(names[:3])}" if names else ""

    def beside(self) -> Sequence[Unreadable | Ignored]:
        self.files()
        return self._others

    def state(self, shard: int) -> str:
        return state_of([self.files()[shard]])

    def columns_of(self, schema: Any, path: Path) -> list[str]:
        """The columns of a file that are read. ValueError where one is lacking, or of another kind."""
        from pyarrow import types

        def is_bytes(kind: Any) -> bool:
            return types.is_binary(kind) or types.is_large_binary(kind)

        asked = dict.fromkeys(self.caption_columns, "caption_column") | {self.image_column: "image_column"}
        asked |= {} if self.quality_column is None else {self.quality_column: "quality_column"}
        asked |= {name: setting for setting in ("least", "most") for name in getattr(self, setting)}
        columns = {}
        for name, setting in asked.items():
            top = next((one for one in (name, f"{name}s", name.partition(".")[0]) if one in schema.names), None)
            if top is None:
                raise ValueError(
                    f"{path} has no column {name!r}, only {schema.names[:MOST_NAMED]}; set source.{setting}"
                )
            columns[name] = top
        kind = schema.field(columns[self.image_column]).type
        parts = (
            {kind.field(n).name: kind.field(n).type for n in range(kind.num_fields)} if types.is_struct(kind) else {}
        )
        if not (is_bytes(kind) or ("bytes" in parts and is_bytes(parts["bytes"]))):
            holds = f"{path}: its column {self.image_column!r} holds {str(kind)[:200]}, not the bytes of pictures"
            is_text = types.is_string(kind) or types.is_large_string(kind)
            raise ValueError(f"{holds}; for paths there is source=table" if is_text else holds)
        return list(dict.fromkeys(columns.values()))

    def read(self, shard: int) -> Iterator[Picture]:
        path, number = self.files()[shard], -1
        room = max(ALWAYS_ROOM, MOST_TIMES * size_of_file(path))
        try:
            with open_parquet(path) as file:
                columns = self.columns_of(file.schema_arrow, path)
                check_unpacked(file.metadata, path)
                for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=columns):
                    room -= batch.nbytes + TEXT_BYTES * batch.num_rows  # what many rows repeat is in the file once
                    check_room(room)
                    for row in rows_in(batch):
                        number += 1
                        yield self.picture(f"{path.stem}/{number:06d}", row, path)
        except DamagedParquetError as error:
            yield Unreadable(path.name, f"damaged, what lies behind row {number + 1} of it is lost: {error}")
        except ValueError as error:
            yield Unreadable(path.name, str(error))

    def picture(self, key: str, row: Mapping[str, Any], path: Path) -> Picture:
        """What is in a row."""
        cell = row[self.image_column]
        held = cell if isinstance(cell, Mapping) else {"bytes": cell}
        content, name = held.get("bytes"), held.get("path")
        try:
            check_numbers(row, self.least, self.most)
            cells = {column: as_texts(told_in(row, column)) for column in self.caption_columns}
            captions = captions_in(cells, self.caption_columns)
            if not captions:
                got = ", ".join(f"{in_brief(value)} in {column!r}" for column, value in cells.items())
                return Unreadable(key, f"no caption: the row has {got}, not a text")
            if not content and isinstance(name, str) and name:
                content = content_of(path.parent / name)
            if not isinstance(content, bytes) or not content:
                return Unreadable(key, f"there is no picture in {self.image_column!r}")
            if len(content) > LARGEST_FILE:
                return Unreadable(key, f"it has {len(content):,} bytes, more than any picture")
            return CaptionedImage(key, content, captions, quality_in(row, self.quality_column))
        except FilteredImageError as error:
            return Unwanted(key, str(error))
        except (OSError, ValueError) as error:
            if is_refusal(error) and not isinstance(error, PermissionError):
                raise
            return Unreadable(key, f"cannot be read: {error}")


class DamagedParquetError(ValueError):
    """A Parquet file cannot be read to its end; the message says why."""


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A Parquet file, open while the block runs. DamagedParquetError where it, or the block, finds that it is none or
    damaged; ValueError where the library for it is not installed."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(NO_PARQUET) from error
    size_of_file(path)
    try:
        with ParquetFile(path) as file:
            yield file
    except (ArrowException, OSError, KeyError) as error:
        if is_refusal(error):
            raise
        raise DamagedParquetError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def check_unpacked(metadata: Any, path: Path) -> None:
    """Raises ValueError where a file says that it unpacks to much more than it is."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    if sum(group.total_byte_size for group in groups) > max(ALWAYS_ROOM, MOST_TIMES * size_of_file(path)):
        raise ValueError(f"it unpacks to over {MOST_TIMES} times its size, as no pictures do")


def rows_in(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a batch of Arrow, one at a time."""
    for number in range(batch.num_rows):
        yield {name: batch.column(place)[number].as_py() for place, name in enumerate(batch.schema.names)}
