"""Reading fields of latent shards by position, straight into the rows of a batch, each checked against the index."""

import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float16, Int64, UInt8, UInt64

from microdit.data.shards.columns import WORD, word_sum
from microdit.data.shards.corruption import CorruptSampleError
from microdit.data.shards.index import ABSENT, DTYPES, HALF, ShardIndex
from microdit.data.shards.tars import BLOCK
from microdit.files import is_refusal, size_of_file

HALF_BYTES = 2
LARGEST_GAP = 1 << 16  # bytes that are sooner read than passed over
NOWHERE = memoryview(bytearray(LARGEST_GAP))  # where they go; whoever writes there, nobody reads


class FieldRead:
    """`field` of some rows of a folder, on its way into out[slots]. KeyError where no sample has the field.

    `starts`, `ends`: of each in its tar, from its tar header on, so that what is checked includes whose field it is.
    `refused`: by the number of the row, why the index itself shows a field to be unfit.
    """

    def __init__(
        self,
        index: ShardIndex,
        field: str,
        rows: Int64[np.ndarray, " n"],
        slots: Int64[np.ndarray, " n"],
        out: Float16[np.ndarray, "b *shape"],
    ) -> None:
        self.field, self._slots = field, slots
        names = ("offset", "length", "head", "dtype", "shape", "finite", "checksum")
        self.column = {name: index.column(field, name)[rows] for name in names}
        heads = BLOCK + self.column["head"].astype(np.int64)
        lengths = np.where(self.column["shape"] < 0, 1, self.column["shape"]).prod(axis=1) * HALF_BYTES
        self.refused = self._refuse(out.shape[1:], heads + lengths == BLOCK + self.column["length"].astype(np.int64))
        self.starts = self.column["offset"] - BLOCK
        self.ends = self.starts + heads + lengths
        stride = -(-int(heads.max()) // WORD) * WORD
        self._heads = np.zeros((len(rows), stride), np.uint8)
        self._rows, self._sums = out.reshape(len(out), -1).view(np.uint8), np.zeros(len(rows), np.uint64)
        for number in np.flatnonzero(lengths < out[0].nbytes):  # the rest of the place holds another batch
            self._rows[slots[number], lengths[number] :] = 0
        head_starts, row_starts = np.arange(len(rows)) * stride, slots * out[0].nbytes
        places = (head_starts, head_starts + heads, row_starts, row_starts + lengths)
        self._places = list(zip(*(place.tolist() for place in places), strict=True))
        self._head_bytes, self._row_bytes = self._heads.reshape(-1).data, self._rows.reshape(-1).data

    def views(self, number: int) -> list[memoryview]:
        """Where the bytes of a row go: those before its numbers, and its numbers."""
        head_start, head_end, start, end = self._places[number]
        return [self._head_bytes[head_start:head_end], self._row_bytes[start:end]]

    def add_up(self, first: int, end: int) -> None:
        """Take the checksums of the rows from number `first` to `end`, while a cache still has them."""
        self._sums[first:end] = row_sums(self._rows, self._slots[first:end])

    def changed(self) -> Int64[np.ndarray, " m"]:
        """The rows whose bytes are not those that were indexed, by number, once all are added up."""
        sums = self._sums + self._heads.view("<u8").sum(axis=1, dtype=np.uint64)
        return np.flatnonzero(sums != self.column["checksum"])

    def _refuse(self, shape: tuple[int, ...], whole: Bool[np.ndarray, " n"]) -> dict[int, str]:
        """Rows that cannot be read into `shape`, or should not. A caption may hold fewer positions: it was trimmed.
        `whole`: where head and numbers are as long as the field."""
        offset, dtype, found, finite = (self.column[name] for name in ("offset", "dtype", "shape", "finite"))
        fits = found == np.array([*shape, *[-1] * (3 - len(shape))])
        if self.field.startswith("caption"):
            fits[:, 0] |= (found[:, 0] < shape[0]) & (found[:, 0] > 0)
        fits = fits.all(axis=1) & (dtype == HALF)
        reasons = {}
        for number in np.flatnonzero((offset < BLOCK) | ~fits | ~finite | ~whole):
            if offset[number] == ABSENT["offset"]:
                reason = "the sample has no such field"
            elif offset[number] < BLOCK:
                reason = "the index is damaged, nothing lies there; make it anew"
            elif not 0 < dtype[number] < len(DTYPES):
                reason = "it is no readable array of numbers"
            elif not fits[number]:
                sides = tuple(int(side) for side in found[number] if side >= 0)
                reason = f"it holds {DTYPES[dtype[number]]} {sides} where <f2 {shape} is expected"
            elif not finite[number]:
                reason = "it holds NaN or infinite numbers"
            else:
                reason = "the index is damaged, its lengths contradict each other; make it anew"
            reasons[int(number)] = reason
        return reasons


class JointRead:
    """Several fields of the same rows; where they lie near each other in all samples, one call reads a sample."""

    def __init__(self, reads: Sequence[FieldRead]) -> None:
        self.reads = sorted(reads, key=lambda read: int(read.starts[0]))
        gaps = [later.starts - read.ends for read, later in zip(self.reads, self.reads[1:], strict=False)]
        near = all(((gap >= 0) & (gap <= LARGEST_GAP)).all() for gap in gaps)
        self._gaps = [gap.tolist() for gap in gaps] if near else None
        self._starts, self._ends = (
            [getattr(read, name).tolist() for read in self.reads] for name in ("starts", "ends")
        )

    def fill(self, descriptor: int, number: int) -> bool:
        """Read all fields of a row from its tar; False where the tar ends before them. OSError as the system has it."""
        if self._gaps is None:
            plan = zip(self.reads, self._starts, self._ends, strict=True)
            return all(
                os.preadv(descriptor, read.views(number), starts[number]) == ends[number] - starts[number]
                for read, starts, ends in plan
            )
        views = self.reads[0].views(number)
        for read, gap in zip(self.reads[1:], self._gaps, strict=True):
            views.append(NOWHERE[: gap[number]])
            views += read.views(number)
        start = self._starts[0][number]
        return os.preadv(descriptor, views, start) == self._ends[-1][number] - start


def row_sums(rows: UInt8[np.ndarray, "b bytes"], slots: Int64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    """The checksum of each rows[slot]."""
    steps = np.diff(slots)
    if rows.shape[1] % WORD == 0 and (steps > 0).all() and (steps == steps[:1]).all():
        # As in a batch of one source, or of two in turns: one call for all.
        step = int(steps[0]) if len(steps) else 1
        return rows.view("<u8")[slots[0] : slots[-1] + 1 : step].sum(axis=1, dtype=np.uint64)
    return np.array([word_sum(rows[slot]) for slot in slots], np.uint64)


OPEN_SHARDS = 64
CHECKED_TOGETHER = 16  # rows: few calls, yet not more than a processor has cache for
Failures = dict[int, CorruptSampleError]


@runtime_checkable
class Shards(Protocol):
    """Where the shards of a folder are."""

    folder: str
    distant: bool  # whether it is worth telling what comes next

    def open(self, shard: int) -> FileIO:
        """A shard by its number, open for reading. OSError where it cannot be had."""
        ...

    def ahead(self, shards: Sequence[int]) -> None:
        """These shards will be read soon, in this order."""
        ...


class LocalShards:
    """Shards in a local folder."""

    distant = False

    def __init__(self, folder: str, names: Sequence[str]) -> None:
        self.folder, self.names = folder, names

    def open(self, shard: int) -> FileIO:
        """A shard by its number, open for reading. OSError where it is no ordinary file."""
        path = Path(self.folder) / self.names[shard]
        size_of_file(path)
        return FileIO(path)

    def ahead(self, shards: Sequence[int]) -> None:
        """They are where they are."""


class ShardReader:
    """Reads the samples of one folder by row number. Files are opened in the process that reads them."""

    def __init__(self, index: ShardIndex, shards: Shards) -> None:
        self.index, self.shards = index, shards
        self._files: OrderedDict[int, FileIO] = OrderedDict()
        self._lock, self._process = Lock(), os.getpid()

    def read(
        self,
        fields: Mapping[str, Float16[np.ndarray, "b *shape"]],
        rows: Int64[np.ndarray, " n"],
        slots: Int64[np.ndarray, " n"],
    ) -> Failures:
        """Read each of `fields` of each row into its array at [slot]; returns what failed, by slot.

        Where a row holds fewer positions along the first axis than the array (a trimmed caption), the rest is zero.
        """
        lacking = [field for field in fields if field not in self.index.fields]
        if lacking:
            reason = "the folder has no such field"
            return {
                slot: self.failure(row, lacking[0], reason)
                for row, slot in zip(rows.tolist(), slots.tolist(), strict=True)
            }
        reads = [FieldRead(self.index, field, rows, slots, out) for field, out in fields.items()]
        failures: Failures = {}

        def fail(number: int, field: str, reason: str) -> None:
            failures.setdefault(int(slots[number]), self.failure(int(rows[number]), field, reason))

        for read in reads:
            for number, reason in read.refused.items():
                fail(number, read.field, reason)
        joint, files = JointRead(reads), {}
        places = list(zip(slots.tolist(), self.shards_of(rows).tolist(), strict=True))
        for first in range(0, len(rows), CHECKED_TOGETHER):
            end = min(first + CHECKED_TOGETHER, len(rows))
            for number in range(first, end):
                slot, shard = places[number]
                if slot in failures:
                    continue
                try:
                    if len(files) >= OPEN_SHARDS:
                        files.clear()
                    if shard not in files:
                        files[shard] = self.file(shard)
                    if not joint.fill(files[shard].fileno(), number):
                        fail(number, reads[-1].field, "the tar ends before the bytes that the index promises")
                except OSError as error:
                    if is_refusal(error):
                        raise
                    fail(number, reads[0].field, f"the shard cannot be read ({error})")
            for read in reads:
                read.add_up(first, end)
        for read in reads:
            for number in read.changed().tolist():
                fail(number, read.field, f"the tar and its index {self.index.path} disagree about these bytes")
        return failures

    def record(self, row: int) -> dict[str, object]:
        """The `.json` of a sample. CorruptSampleError where it cannot be read."""
        if "json/offset" not in self.index.columns or (offset := int(self.index.column("json", "offset")[row])) < BLOCK:
            raise self.failure(row, "json", "the sample has no such field")
        length = int(self.index.column("json", "length")[row])
        try:
            block = os.pread(self.file(self.index.shard_of(row)).fileno(), BLOCK + length, offset - BLOCK)
        except OSError as error:
            if is_refusal(error):
                raise
            raise self.failure(row, "json", f"the shard cannot be read ({error})") from error
        total = (word_sum(block[:BLOCK]) + word_sum(memoryview(block)[BLOCK:])) % (1 << 64)
        if len(block) != BLOCK + length or total != int(self.index.column("json", "checksum")[row]):
            raise self.failure(row, "json", f"the tar and its index {self.index.path} disagree about these bytes")
        try:
            record = json.loads(block[BLOCK:])
        except (ValueError, RecursionError) as error:
            raise self.failure(row, "json", f"it is no JSON ({error})") from error
        return record if isinstance(record, dict) else {"caption": record}

    def shards_of(self, rows: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The number of the shard that holds each row."""
        return np.searchsorted(self.index.row_starts + self.index.shard_rows, rows, side="right")

    def failure(self, row: int, field: str, reason: str) -> CorruptSampleError:
        """The error that names shard, key, field and cause."""
        shard = self.index.shards[self.index.shard_of(row)]
        return CorruptSampleError(f"{self.shards.folder}/{shard}: {self.index.key(row)}.{field}: {reason}")

    def file(self, shard: int) -> FileIO:
        """An open shard, by its number. OSError where there is none. It stays open while the caller holds it."""
        if self._process != os.getpid():  # a forked process opens files of its own
            self._files, self._lock, self._process = OrderedDict(), Lock(), os.getpid()
        with self._lock:
            if shard in self._files:
                self._files.move_to_end(shard)
                return self._files[shard]
        file = self.shards.open(shard)
        with self._lock:
            self._files[shard] = file
            while len(self._files) > OPEN_SHARDS:
                self._files.popitem(last=False)
        return file

    def __getstate__(self) -> dict[str, object]:
        return {"index": self.index, "shards": self.shards}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state | {"_files": OrderedDict(), "_lock": Lock(), "_process": os.getpid()}
