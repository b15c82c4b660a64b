"""A table of pictures and captions: CSV, TSV, JSONL or Parquet, one row a picture, its file named by a column."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from microdit.data.sources.captioned import CaptionedImage, Source, Unreadable, captions_in

READERS = {
    ".csv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False),
    ".tsv": lambda path: pd.read_csv(path, dtype=str, keep_default_na=False, sep="\t"),
    ".jsonl": lambda path: pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]),
    ".parquet": pd.read_parquet,
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
        self.path = Path(path).expanduser()
        self.image_column, self.caption_column, self.shard_size = image_column, caption_column, shard_size
        self.image_folder = Path(image_folder).expanduser() if image_folder else self.path.parent
        self._rows: list[tuple[str, object]] | None = None

    @property
    def identity(self) -> Mapping[str, object]:
        names = ("image_column", "caption_column", "shard_size")
        paths = {"path": str(self.path.resolve()), "image_folder": str(self.image_folder.resolve())}
        return {"kind": "table", **paths, **{name: getattr(self, name) for name in names}, "rows": len(self.rows())}

    def rows(self) -> list[tuple[str, object]]:
        """(path of the picture, caption or captions) of every row. ValueError for another kind of file or a missing
        column."""
        if self._rows is None:
            if self.path.suffix.lower() not in READERS:
                raise ValueError(f"{self.path}: a table is one of {', '.join(READERS)}")
            table = READERS[self.path.suffix.lower()](self.path)
            for column, setting in ((self.image_column, "image_column"), (self.caption_column, "caption_column")):
                if column not in table.columns:
                    raise ValueError(
                        f"{self.path} has no column {column!r}, only {list(table.columns)}; set source.{setting}"
                    )
            self._rows = list(zip(table[self.image_column].map(str), table[self.caption_column], strict=True))
        return self._rows

    def shards(self) -> list[str]:
        if not self.rows():
            raise FileNotFoundError(f"{self.path} has no rows")
        return [f"rows from {first}" for first in range(0, len(self.rows()), self.shard_size)]

    def read(self, shard: int) -> Iterator[CaptionedImage | Unreadable]:
        for key, caption in self.rows()[shard * self.shard_size : (shard + 1) * self.shard_size]:
            captions = captions_in(as_texts(caption), self.caption_column)
            if not captions:
                yield Unreadable(key, "no caption")
                continue
            try:
                yield CaptionedImage(key, (self.image_folder / key).read_bytes(), captions)
            except (OSError, ValueError) as error:
                yield Unreadable(key, f"cannot be read: {error}")


def as_texts(caption: object) -> object:
    """A cell as a text or a list of texts: Parquet gives arrays, and CSV holds lists as JSON."""
    if isinstance(caption, str) and caption.startswith("["):
        try:
            return json.loads(caption)
        except ValueError:
            return caption
    return caption.tolist() if isinstance(caption, np.ndarray) else caption
