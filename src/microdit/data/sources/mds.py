"""MosaicML's shards (MDS), read without its library: captioned pictures, or latents that micro_diffusion wrote.

A shard is a count and that many offsets, a description, and the samples; a sample is the length of each column that has
no fixed one, and the columns. `index.json` says which columns, in which order and encoding.
"""

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypedDict

import numpy as np

from microdit.data.sources.archives import PackedError, unpacked
from microdit.data.sources.below import files_below, state_of
from microdit.data.sources.captioned import (
    LARGEST_FILE,
    CaptionedImage,
    EncodedImage,
    Found,
    Ignored,
    Source,
    Unreadable,
    Unwanted,
)
from microdit.data.sources.captions import (
    CAPTION_COLUMN,
    Bounds,
    NoCaptionError,
    bounds,
    captions_in,
    check_numbers,
    names_of,
    text_in,
)
from microdit.data.sources.images import FilteredImageError
from microdit.files import near_path, read_json, size_of_file
from microdit.kinds import Copied, Limits, SettingsError, check_kind

INDEX = "index.json"
LARGEST_INDEX = 1 << 28  # bytes
PICTURES = ("jpeg", "png", "bytes")  # encodings whose bytes are those of a file
TEXTS = ("str", "bytes")
NUMBERS = re.compile(r"u?int(8|16|32|64)?|float(16|32|64)")
LATENTS = re.compile(r"latents_(\d+)")
COUNT = np.dtype("<u4")
File = TypedDict("File", {"basename": Annotated[str, Limits(1, 4096)], "bytes": int, "**": Any})
Shard = TypedDict(
    "Shard",
    {
        "column_names": Annotated[list[str], Limits(1, 1000)],
        "column_encodings": list[str],
        "column_sizes": list[int | None],
        "format": Literal["mds"],
        "raw_data": File,
        "zip_data": File | None,
        "samples": Annotated[int, Limits(0, 10**9)],
        "**": Any,
    },
)
Index = TypedDict("Index", {"shards": Annotated[list[Shard], Limits(1, 10**6)], "**": Any})


class MdsSource(Source):
    """Captioned pictures, or latents, in the shards below a folder, by the `index.json` in it or in its folders.

    `image_column`: the bytes of a picture. `caption_column`: its caption, or several. Where the shards hold latents
    (`latents_256`, ... beside `CAPTION_latents`, as micro_diffusion's preparation writes them), these are taken as they
    are. `least`, `most`: by column, what numbers may be.
    """

    def __init__(
        self,
        path: Copied,
        image_column: str = "jpg",
        caption_column: str | Sequence[str] = CAPTION_COLUMN,
        least: Bounds = None,
        most: Bounds = None,
    ) -> None:
        self.path = Path(path).expanduser()
        self.image_column, self.caption_columns = (
            image_column,
            names_of(caption_column),
        )
        if not self.caption_columns:
            raise SettingsError("source.caption_column names a column, or a list of them, got an empty list")
        self.least, self.most = least or {}, most or {}
        self._shards: list[tuple[Path, Shard]] | None = None
        self._others: list[Unreadable | Ignored] = []

    @property
    def identity(self) -> Mapping[str, object]:
        captions = self.caption_columns[0] if len(self.caption_columns) == 1 else self.caption_columns
        columns = {"image_column": self.image_column, "caption_column": captions}
        return {"kind": "mds", "path": str(self.path.resolve()), **columns, **bounds(self.least, self.most)}

    @property
    def encoded(self) -> bool:
        return any(map(LATENTS.fullmatch, self.found()[0][1]["column_names"]))

    def place(self) -> Path:
        return self.path

    def shards(self) -> list[str]:
        return [str(file) for file, _ in self.found()]

    def found(self) -> list[tuple[Path, Shard]]:
        """Every shard's file with its entry in an index, in order. FileNotFoundError where there is no index or a file
        is missing, DamagedFileError and SettingsError for an index that is none, or lacks the columns."""
        if self._shards is None:
            if not self.path.is_dir():
                near = "" if self.path.exists() else near_path(self.path)
                raise FileNotFoundError(
                    f"{self.path} is no folder. Give the one with the {INDEX}: source.path=FOLDER{near}"
                )
            names, self._others = files_below(self.path)
            indices = [INDEX] if INDEX in names else [name for name in names if Path(name).name == INDEX]
            if not indices:
                raise FileNotFoundError(f"{self.path} holds no {INDEX}, which says what is in its .mds shards")
            shards = [one for name in indices for one in self.listed(self.path / name)]
            known = {os.path.relpath(file, self.path) for file, _ in shards}
            if len(known) < len(shards):
                twice = Counter(file for file, _ in shards).most_common(1)[0][0]
                raise SettingsError(
                    f"{twice} is named more than once by an {INDEX}: each shard is read once, remove one"
                )
            self._others += (
                Ignored(name, f"no shard that the {INDEX} names")
                for name in names
                if name not in known and Path(name).name != INDEX
            )
            self._shards = shards
        return self._shards

    def listed(self, index: Path) -> list[tuple[Path, Shard]]:
        """The shards that an index names."""
        content = read_json(index, "copy it again from where the shards are from", LARGEST_INDEX)
        check_kind(content, Index, f"{index}:")
        return [(self.file_of(index, shard), self.checked(index, shard)) for shard in content["shards"]]

    def file_of(self, index: Path, shard: Shard) -> Path:
        """The file of a shard: the unpacked one where it is there, else the packed one."""
        for part in (shard["raw_data"], shard["zip_data"]):
            if part is not None:
                inside = Path(part["basename"])
                if inside.is_absolute() or ".." in inside.parts:
                    raise SettingsError(f"{index}: {inside} is no file below the folder of the index")
                if (index.parent / inside).is_file():
                    return index.parent / inside
        raise FileNotFoundError(f"{index} names {shard['raw_data']['basename']}, which is not there: copy all shards")

    def checked(self, index: Path, shard: Shard) -> Shard:
        """An entry whose columns are as they are asked for."""
        names, encodings = (
            shard["column_names"],
            dict(zip(shard["column_names"], shard["column_encodings"], strict=False)),
        )
        if len({*names}) < len(names) or not len(names) == len(encodings) == len(shard["column_sizes"]):
            raise SettingsError(f"{index}: the columns of {shard['raw_data']['basename']} contradict each other")
        latents = [name for name in names if LATENTS.fullmatch(name)]
        wanted = {self.image_column: ("image_column", PICTURES)} if not latents else {}
        wanted |= dict.fromkeys(self.caption_columns, ("caption_column", TEXTS))
        wanted |= {f"{name}_latents": ("caption_column", ("bytes",)) for name in self.caption_columns if latents}
        for name, (setting, kinds) in wanted.items():
            if name not in encodings:
                raise SettingsError(f"{index} has no column {name!r}, only {names}; set source.{setting}")
            if encodings[name] not in kinds:
                told = f"{index}: column {name!r} is encoded as {encodings[name]}"
                raise SettingsError(f"{told}, and {' or '.join(kinds)} is read here; set source.{setting}")
        for name in (*self.least, *self.most):
            if not NUMBERS.fullmatch(encodings.get(name, "")):
                raise SettingsError(
                    f"{index} has no column of numbers {name!r}, only {names}; see source.least and most"
                )
        return shard

    def beside(self) -> Sequence[Unreadable | Ignored]:
        self.found()
        return self._others

    def state(self, shard: int) -> str:
        return state_of([self.found()[shard][0]])

    def read(self, shard: int) -> Iterator[Found]:
        path, entry = self.found()[shard]
        name = os.path.relpath(path, self.path)
        stem = name.removesuffix(".zstd").removesuffix(".zst").removesuffix(".mds")
        try:
            with unpacked(path, Path(tempfile.gettempdir())) as plain, plain.open("rb") as file:
                size = size_of_file(plain)
                offsets = offsets_in(file, entry["samples"], size)
                for number, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
                    yield self.sample(f"{stem}/{number:06d}", file, start, end, entry)
        except (PackedError, DamagedShardError) as error:
            yield Unreadable(name, str(error))

    def sample(self, key: str, file: BinaryIO, start: int, end: int, shard: Shard) -> Found:
        """One sample between two bytes of a shard."""
        try:
            if end - start > 2 * LARGEST_FILE:
                raise DamagedShardError(f"it has {end - start:,} bytes, more than any picture")
            cells = cells_in(os.pread(file.fileno(), end - start, start), shard)
            encodings = dict(zip(shard["column_names"], shard["column_encodings"], strict=True))
            numbers = {name: number_of(cells[name], encodings[name]) for name in (*self.least, *self.most)}
            check_numbers(numbers, self.least, self.most)
            columns = {name: text_in(cells[name]) for name in self.caption_columns}
            latents = {int(found[1]): halves(cells[name], name) for name in cells if (found := LATENTS.fullmatch(name))}
            if latents:
                embeddings = [halves(cells[f"{name}_latents"], f"{name}_latents") for name in columns]
                return EncodedImage(key, latents, embeddings, list(columns.values()))
            captions = captions_in(columns, self.caption_columns)
            if not captions:
                raise NoCaptionError(f"no caption: there are no words in {' or '.join(self.caption_columns)}")
            if not cells[self.image_column]:
                raise DamagedShardError(f"there is no picture in {self.image_column!r}")
            return CaptionedImage(key, cells[self.image_column], captions)
        except FilteredImageError as error:
            return Unwanted(key, str(error))
        except UnicodeDecodeError as error:
            return Unreadable(key, f"no caption: it is not UTF-8 ({error.reason} at byte {error.start})")
        except ValueError as error:
            return Unreadable(key, str(error))


class DamagedShardError(ValueError):
    """A shard, or a sample in one, does not hold what its own numbers say; the message says how."""


def halves(content: bytes, name: str) -> np.ndarray:
    """The half-precision numbers in a column. DamagedShardError for what is none."""
    if not content or len(content) % 2:
        raise DamagedShardError(f"its {name} has {len(content):,} bytes, which are no numbers in half precision")
    return np.frombuffer(content, "<f2")


def offsets_in(file: BinaryIO, samples: int, size: int) -> np.ndarray:
    """Where each sample of a shard of `size` bytes starts, and where the last one ends. DamagedShardError where that
    cannot be."""
    if size < COUNT.itemsize * (samples + 2):
        raise DamagedShardError(f"it is cut short: {size:,} bytes, and its index promises {samples:,} samples")
    head = np.frombuffer(os.pread(file.fileno(), COUNT.itemsize * (samples + 2), 0), COUNT).astype(np.int64)
    if head[0] != samples:
        raise DamagedShardError(f"it holds {head[0]:,} samples, and its index promises {samples:,}")
    if (np.diff(head[1:]) < 0).any() or head[1] < COUNT.itemsize * (samples + 2) or head[-1] > size:
        raise DamagedShardError("it is cut short, or where its samples begin is damaged")
    return head[1:]


def cells_in(content: bytes, shard: Shard) -> dict[str, bytes]:
    """The columns of a sample. DamagedShardError where they are not as long as they say."""
    fixed = shard["column_sizes"]
    varying = sum(size is None for size in fixed)
    if len(content) < COUNT.itemsize * varying:
        raise DamagedShardError("it is shorter than the lengths of its columns")
    lengths = iter(np.frombuffer(content[: COUNT.itemsize * varying], COUNT).tolist())
    sizes = [next(lengths) if size is None else size for size in fixed]
    if COUNT.itemsize * varying + sum(sizes) != len(content):
        raise DamagedShardError("its columns are not as long as they say")
    cells, place = {}, COUNT.itemsize * varying
    for name, size in zip(shard["column_names"], sizes, strict=True):
        cells[name] = content[place : place + size]
        place += size
    return cells


def number_of(content: bytes, encoding: str) -> float:
    """The number in a column."""
    kind = np.dtype("int64" if encoding == "int" else encoding).newbyteorder("<")
    if len(content) != kind.itemsize:
        raise DamagedShardError(f"a number of {encoding} has {len(content)} bytes")
    return float(np.frombuffer(content, kind)[0])
