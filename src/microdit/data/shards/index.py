"""The index of a folder of latent shards: for every key and field, where its bytes lie and what array they are.

`index/SHARD.npz` describes one tar, `index.npz` is all of them in one. Both follow from the tars alone. Columns, by
row: `key_ends` into the bytes of `keys`; and for each field `FIELD/offset` (-1: absent), `FIELD/length`,
`FIELD/checksum`, and for arrays `FIELD/head` (bytes before the numbers), `FIELD/dtype` (see DTYPES), `FIELD/shape`
(-1: no such axis), `FIELD/finite`. By shard: `shards` (names), `shard_rows`, `shard_bytes`.
"""

import io
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import numpy as np

from microdit.data.shards.columns import ColumnsError, open_columns, word_sum, write_columns
from microdit.data.shards.tars import BLOCK, TarError, TarMember, tar_members
from microdit.files import alone_in, folder_within, size_of_file

INDEX_NAME = "index.npz"
PARTS_FOLDER = "index"
DAMAGE = "damage"  # a column of a part alone: what was lost where a damaged tar was indexed nevertheless
FIELD = re.compile(
    r"\.(latents_[1-9][0-9]{0,5}(?:_[0-9]+)?\.npy|(?:features|quality)\.npy|caption(?:_[0-9]+)?\.npy|json)$"
)
LARGEST_FIELD = 1 << 30  # bytes
# Code 0: no array that this project reads (damaged header, pickled objects, another byte order, more than 3 axes).
DTYPES = ("", "<f2", "<f4", "<f8", "|u1", "<i4", "<i8")
HALF = DTYPES.index("<f2")
AXES = 3
JUDGED_ROWS = 1000
ABSENT = {"offset": -1, "length": 0, "checksum": 0, "head": 0, "dtype": 0, "shape": -1, "finite": False}
COLUMN_TYPES = {
    "offset": np.int64,
    "length": np.uint32,
    "checksum": np.uint64,
    "head": np.uint16,
    "dtype": np.uint8,
    "shape": np.int32,
    "finite": np.bool_,
}
OWN_TYPES = {
    "shards": np.str_,
    "shard_rows": np.int64,
    "shard_bytes": np.int64,
    "keys": np.uint8,
    "key_ends": np.int64,
}
OF_ORDER = ("shard_rows", "keys", "key_ends")
SHARD_NAME = re.compile(r"[^/\x00]*\.tar")  # of a file beside the index, and nowhere else
MOST_FIELDS = 250  # of all samples: a hundred captions, and as many resolutions
Columns = dict[str, np.ndarray]


class IndexMissingError(FileNotFoundError):
    """A folder has no index; the message names the folder and the command that makes one."""


@lru_cache(maxsize=1024)
def array_layout(header: bytes) -> tuple[int, int, tuple[int, ...]]:
    """(bytes of the header, dtype code, shape) from the header of a `.npy` file; dtype code 0 if unreadable."""
    try:
        file = io.BytesIO(header)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception:  # numpy parses the header as Python, so a damaged one raises whatever a parser may
        return 0, 0, ()
    if dtype.str not in DTYPES[1:] or len(shape) > AXES or (fortran and len(shape) > 1) or min(shape, default=1) < 1:
        return 0, 0, ()
    return file.tell(), DTYPES.index(dtype.str), shape


def npy_head(start: bytes) -> int:
    """How many bytes of a `.npy` file come before its numbers, according to its own prefix."""
    wide = len(start) > 6 and start[6] > 1
    return 12 + int.from_bytes(start[8:12], "little") if wide else 10 + int.from_bytes(start[8:10], "little")


def is_finite(numbers: np.ndarray) -> bool:
    """Whether no number is NaN or infinite."""
    if numbers.dtype == np.float16:  # all five exponent bits set; np.isfinite is slow on halves
        return not ((numbers.view(np.uint16) & 0x7C00) == 0x7C00).any()
    return numbers.dtype.kind != "f" or bool(np.isfinite(numbers).all())


def describe_field(descriptor: int, member: TarMember, is_array: bool) -> dict[str, object]:
    """The index entry of one field; `descriptor` is its open tar."""
    block = os.pread(descriptor, BLOCK + member.length, member.offset - BLOCK)
    if len(block) != BLOCK + member.length:
        raise TarError(f"the tar ends within {member.name!r} at byte {member.offset}")
    entry: dict[str, object] = {"offset": member.offset, "length": member.length}
    head, dtype, shape = array_layout(block[BLOCK : BLOCK + npy_head(block[BLOCK:])]) if is_array else (0, 0, ())
    if head + np.dtype(DTYPES[dtype] or "V").itemsize * math.prod(shape) != member.length:
        head, dtype, shape = 0, 0, ()  # not as long as its own header says
    entry["finite"] = bool(dtype) and is_finite(np.frombuffer(block, DTYPES[dtype], offset=BLOCK + head))
    entry |= {"head": head, "dtype": dtype, "shape": [*shape, *[-1] * (AXES - len(shape))]}
    # The head and the numbers are read into different places, so they are summed apart.
    entry["checksum"] = (word_sum(block[: BLOCK + head]) + word_sum(memoryview(block)[BLOCK + head :])) % (1 << 64)
    return entry


def index_shard(path: Path, keep_readable_part: bool = False, name: str | None = None) -> Columns:
    """The columns of one tar, its samples in the order in which their keys first appear, their fields anywhere in it.
    `name`: what the tar will be called, where that is not yet its name.

    TarError where the tar is cut short, damaged, or holds a field of a key twice; with `keep_readable_part` the samples
    before the damage are indexed instead.
    """
    rows: dict[str, dict[str, dict[str, object]]] = {}
    known: set[str] = set()
    size_of_file(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for member in readable_members(path, keep_readable_part):
            folder, slash, file_name = member.name.rpartition("/")
            found = FIELD.search(file_name)
            if found is None or found.start() == 0:
                continue
            field = found.group(1)
            fields = rows.setdefault(folder + slash + file_name[: found.start()], {})
            if field in fields:
                raise TarError(f"{path}: holds {member.name!r} twice")
            known.add(field)
            check_fields(known, path)
            fields[field] = describe_field(descriptor, member, field.endswith(".npy"))
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    keys = [key.encode("utf-8", "backslashreplace") for key in rows]
    columns: Columns = {
        "shards": np.array([name or path.name]),
        "shard_rows": np.array([len(keys)], np.int64),
        "shard_bytes": np.array([size], np.int64),
        "keys": np.frombuffer(b"".join(keys), np.uint8),
        "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
    }
    for field in sorted(known):
        for column in columns_of(field):
            filled = absent(column, len(rows))
            for row, fields in enumerate(rows.values()):
                if field in fields:
                    filled[row] = fields[field][column]
            columns[f"{field}/{column}"] = filled
    return columns


def check_fields(fields: Collection[str], path: Path) -> None:
    """Raises TarError where there are more fields than samples have: each is a place in every row."""
    if len(fields) > MOST_FIELDS:
        raise TarError(
            f"{path}: more than {MOST_FIELDS} different fields, such as {max(fields)}, which no samples have"
        )


def readable_members(path: Path, keep_readable_part: bool) -> Iterator[TarMember]:
    try:
        for member in tar_members(path):
            if member.length > LARGEST_FIELD and FIELD.search(member.name):
                raise TarError(f"{path}: {member.name!r} has {member.length:,} bytes, more than any field of a sample")
            yield member
    except TarError:
        if not keep_readable_part:
            raise


def open_index(path: Path) -> Columns:
    """The columns of an index, memory-mapped. ColumnsError where one is lacking, or of another kind or length, or a
    shard is no tar beside the index."""
    columns = open_columns(path)
    fields = {name.rpartition("/")[0] for name in columns if "/" in name}
    kinds = OWN_TYPES | {f"{field}/{name}": COLUMN_TYPES[name] for field in fields for name in columns_of(field)}
    kinds |= {DAMAGE: np.str_} if DAMAGE in columns else {}
    if lacking := sorted(kinds.keys() - columns.keys()):
        raise ColumnsError(f"{path} lacks {lacking}")
    for name, kind in kinds.items():
        dtype, shape = columns[name].dtype, columns[name].shape
        sides = (*shape[:1], AXES) if name.endswith("/shape") else shape[:1]
        if dtype.type is not kind or not dtype.isnative or not shape or shape != sides:
            raise ColumnsError(f"{path}: its column {name} is {dtype} {shape}, which is no such column")
        if kind is np.str_ and np.array(columns[name]).view(np.uint32).max(initial=0) > sys.maxunicode:
            raise ColumnsError(f"{path}: its column {name} is no text")
    rows = sum(columns["shard_rows"].tolist())  # as Python counts: without end
    of_samples = {len(columns[name]) for name in kinds if "/" in name or name == "key_ends"}
    if of_samples != {rows} or len({len(columns[name]) for name in ("shards", "shard_rows", "shard_bytes")}) > 1:
        raise ColumnsError(f"{path} contradicts itself: its columns differ in length")
    if (columns["shard_rows"] < 0).any() or (columns["shard_bytes"] < 0).any():
        raise ColumnsError(f"{path} contradicts itself: a shard of it has less than nothing")
    if strange := [name for name in map(str, columns["shards"]) if not SHARD_NAME.fullmatch(name)]:
        raise ColumnsError(f"{path} names the shard {strange[0][:200]!r}, which is no .tar in its own folder")
    return columns


def columns_of(field: str) -> list[str]:
    """The columns of a field: where its bytes are, and for arrays what they are."""
    return list(COLUMN_TYPES) if field.endswith(".npy") else ["offset", "length", "checksum"]


def merge(parts: Sequence[Columns]) -> Iterator[tuple[str, np.ndarray]]:
    """The columns of several shards as one, one after the other."""
    for name in ("shards", "shard_rows", "shard_bytes", "keys"):
        yield name, np.concatenate([part[name] for part in parts])
    before = np.cumsum([0] + [len(part["keys"]) for part in parts])
    yield "key_ends", np.concatenate([part["key_ends"] + start for part, start in zip(parts, before, strict=False)])
    for name in sorted({name for part in parts for name in part if "/" in name}):
        column = name.rpartition("/")[2]
        yield (
            name,
            np.concatenate([part[name] if name in part else absent(column, len(part["key_ends"])) for part in parts]),
        )


def absent(column: str, rows: int) -> np.ndarray:
    """A column of a field that no sample has."""
    return np.full((rows, AXES) if column == "shape" else rows, ABSENT[column], COLUMN_TYPES[column])


def part_path(shard: Path) -> Path:
    """Where the index of one shard is kept."""
    return shard.parent / PARTS_FOLDER / f"{shard.stem}.npz"


def write_part(shard: Path, columns: Columns) -> None:
    """Keep the index of one shard. SettingsError where a link would take it elsewhere."""
    folder_within(shard.parent, part_path(shard).parent)
    write_columns(part_path(shard), columns.items())


def merge_folder(folder: Path) -> int:
    """Write `index.npz` from the parts of every tar in `folder`; returns the number of samples.

    FileNotFoundError where there is no tar, or a tar without its part.
    """
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise FileNotFoundError(
            f"{folder} {'holds no .tar files to index' if folder.is_dir() else 'is no folder'}. Give the folder in "
            "which the tars lie: python prepare.py index=FOLDER"
        )
    parts = [open_index(part_path(shard)) for shard in shards]
    check_fields({name.rpartition("/")[0] for part in parts for name in part if "/" in name}, folder)
    with alone_in(folder):
        write_columns(folder / INDEX_NAME, merge(parts))
    return sum(int(part["shard_rows"].sum()) for part in parts)


def index_folder(
    folder: Path, on_corrupt: str = "error", progress: Callable[[int, int, str], None] = lambda done, total, doing: None
) -> tuple[int, list[str]]:
    """Index a folder of tars from anywhere; returns the number of samples and a note for each damaged shard.

    `on_corrupt`: "error" stops at the first damaged tar (TarError), "skip" indexes what comes before the damage. A part
    newer than its tar is kept, so a second call costs little.
    """
    if on_corrupt not in ("error", "skip"):
        raise ValueError(f"on_corrupt must be error or skip, got {on_corrupt!r}")
    shards, notes = sorted(folder.glob("*.tar")), []
    for number, shard in enumerate(shards):
        progress(number, len(shards), f"index {shard.name}")
        part = part_path(shard)
        if part.exists() and part.stat().st_mtime_ns > shard.stat().st_mtime_ns and part_fits(part, shard, on_corrupt):
            notes += [str(damage) for damage in open_columns(part).get(DAMAGE, [])]
            continue
        try:
            columns = index_shard(shard)
        except TarError as error:
            if on_corrupt == "error":
                raise TarError(
                    f"{error}. Replace this shard, or index what is readable with on_corrupt=skip"
                ) from error
            columns = index_shard(shard, keep_readable_part=True)
            notes.append(f"{error}; {columns['shard_rows'][0]} samples before it are kept")
            columns[DAMAGE] = np.array(notes[-1:])
        write_part(shard, columns)
    samples = merge_folder(folder)
    progress(len(shards), len(shards), "index written")
    return samples, notes


def part_fits(part: Path, shard: Path, on_corrupt: str) -> bool:
    """Whether a part describes its tar as it is now, and all of it unless damage may be skipped."""
    try:
        columns = open_index(part)
    except ColumnsError:
        return False
    mine = columns["shards"].tolist() == [shard.name] and columns["shard_bytes"].tolist() == [shard.stat().st_size]
    return mine and (on_corrupt == "skip" or DAMAGE not in columns)


class ShardIndex:
    """The index of one folder, memory-mapped: opening it costs by the shard, not by the sample."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise IndexMissingError(
                f"{path.parent} has no {path.name}. Make it with: python prepare.py index={path.parent}"
            )
        self.path = path
        try:
            self.columns = open_index(path)
        except ColumnsError as error:
            raise ColumnsError(f"{error}. Make it anew with: python prepare.py index={path.parent}") from error
        self.shards = [str(name) for name in self.columns["shards"]]
        self.shard_rows = np.array(self.columns["shard_rows"])
        self.row_starts = np.cumsum(self.shard_rows) - self.shard_rows
        self.shard_bytes = np.array(self.columns["shard_bytes"])
        self.fields = sorted({name.rpartition("/")[0] for name in self.columns if "/" in name})

    @property
    def rows(self) -> int:
        """Samples in the folder."""
        return int(self.shard_rows.sum())

    def fingerprint(self) -> str:
        """A name for the samples and their order: another one as soon as a byte of them is another."""
        state = blake2b(digest_size=16)
        for name in sorted(self.columns):
            if name in OF_ORDER or name.endswith("/checksum"):
                state.update(name.encode())
                state.update(np.ascontiguousarray(self.columns[name]).view(np.uint8).data)
        return state.hexdigest()

    def key(self, row: int) -> str:
        """The key of a row."""
        start = int(self.columns["key_ends"][row - 1]) if row else 0
        return bytes(self.columns["keys"][start : int(self.columns["key_ends"][row])]).decode(errors="backslashreplace")

    def shard_of(self, row: int) -> int:
        """The number of the shard that holds a row."""
        return int(np.searchsorted(self.row_starts + self.shard_rows, row, side="right"))

    def column(self, field: str, name: str) -> np.ndarray:
        """One column of a field, by row. KeyError if no shard has the field."""
        return self.columns[f"{field}/{name}"]

    def usual_shape(self, field: str) -> tuple[int, ...]:
        """The shape that most of the first half-precision arrays of a field have; () where there are none."""
        half = self.column(field, "dtype")[:JUDGED_ROWS] == HALF
        shapes, counts = np.unique(self.column(field, "shape")[:JUDGED_ROWS][half], axis=0, return_counts=True)
        return tuple(int(side) for side in shapes[counts.argmax()] if side >= 0) if len(shapes) else ()

    def __reduce__(self) -> tuple[type["ShardIndex"], tuple[Path]]:
        # Another process maps the file itself: it is never sent.
        return ShardIndex, (self.path,)
