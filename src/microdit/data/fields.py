"""What is to be read of one field for the samples of a batch: where from, where to, and what it must add up to."""

import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float16, Int64, UInt8, UInt64

from microdit.data.checksums import WORD, word_sum
from microdit.data.index import DTYPES, HALF, ShardIndex
from microdit.data.tar_members import BLOCK

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
            if offset[number] < BLOCK:
                reason = "the sample has no such field"
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
