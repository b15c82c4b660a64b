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
from jaxtyping import Float16, Int64

from microdit.data.checksums import word_sum
from microdit.data.corruption import CorruptSampleError
from microdit.data.fields import FieldRead, JointRead
from microdit.data.index import ShardIndex
from microdit.data.tar_members import BLOCK

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
        """A shard by its number, open for reading."""
        return FileIO(Path(self.folder) / self.names[shard])

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

        Where a row holds fewer positions along the first axis than the array (a trimmed caption), the rest is left as
        it is: zeros, by contract.
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
                    if shard not in files:
                        files[shard] = self.file(shard)
                    if not joint.fill(files[shard].fileno(), number):
                        fail(number, reads[-1].field, "the tar ends before the bytes that the index promises")
                except OSError as error:
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
            raise self.failure(row, "json", f"the shard cannot be read ({error})") from error
        total = (word_sum(block[:BLOCK]) + word_sum(memoryview(block)[BLOCK:])) % (1 << 64)
        if len(block) != BLOCK + length or total != int(self.index.column("json", "checksum")[row]):
            raise self.failure(row, "json", f"the tar and its index {self.index.path} disagree about these bytes")
        try:
            record = json.loads(block[BLOCK:])
        except ValueError as error:
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
