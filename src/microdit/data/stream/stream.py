"""The stream of training samples: the k-th one is a function of (seed, mix, k), whoever asks for it, and when."""

import math
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int64
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from microdit.data.shards.corruption import CorruptionPolicy, CorruptSampleError, OnCorrupt
from microdit.data.shards.description import LatentDescription, MismatchError
from microdit.data.shards.index import ABSENT
from microdit.data.shards.reader import Failures, ShardReader
from microdit.data.shards.tars import FEATURES_FIELD, QUALITY_FIELD, caption_field, latents_field
from microdit.data.stream.order import EachOnce, Interleave, SourceOrder, draws, seed_of

MOST_NUMBERS = 1 << 25  # of one caption or latent: a hundred times those of 2,048 pixels
ATTEMPTS = 40  # the last replacement tried lies 2^40 samples ahead


class Batch(TypedDict):
    """`source` is the number of the source in the stream's `names`; `replaced` marks samples that stand in for broken
    ones; `features` and `quality` are there where the stream was asked for them."""

    latents: Float16[Tensor, "n c h w"]
    captions: Float16[Tensor, "n l d"]
    source: Int64[Tensor, " n"]
    position: Int64[Tensor, " n"]
    replaced: Bool[Tensor, " n"]
    features: NotRequired[Float16[Tensor, "n d rows columns"]]
    quality: NotRequired[Float16[Tensor, "n 1"]]


@dataclass
class LatentSource:
    """One folder of latent shards in a mix, opened. `weight`: its share, in whatever unit the mix uses. `rows`: those
    of its index that are meant, in order; None: all."""

    name: str
    reader: ShardReader
    description: LatentDescription
    weight: float
    rows: Int64[np.ndarray, " n"] | None = None

    @property
    def samples(self) -> int:
        return self.reader.index.rows if self.rows is None else len(self.rows)

    @cached_property
    def row_starts(self) -> Int64[np.ndarray, " shards"]:
        """The number, among the rows that are meant, of the first one of each shard."""
        index = self.reader.index
        return index.row_starts if self.rows is None else np.searchsorted(self.rows, index.row_starts)

    @property
    def shard_rows(self) -> Int64[np.ndarray, " shards"]:
        """How many rows that are meant each shard has."""
        return self.reader.index.shard_rows if self.rows is None else np.diff([*self.row_starts, self.samples])

    def row(self, numbers: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """Rows of the index by their number among those that are meant."""
        return numbers if self.rows is None else self.rows[numbers]


class LatentStream(Dataset[Batch]):
    """Latents at `resolution_px` and caption embeddings, with `features` also the pictures' features, by position.

    `shuffle`: endless, mixed by weight, each source in an order of its own that is new in every epoch. Without: every
    sample of every source once, in a fixed order, the first caption of each; then the stream has a length.
    `pin_memory`: batches in page-locked memory (only where no worker process makes them; workers leave it to the
    DataLoader). `shape`: of the latents, where not all have one. MismatchError where the sources do not fit together or
    lack the resolution.
    """

    def __init__(
        self,
        sources: Sequence[LatentSource],
        resolution_px: int,
        seed: int,
        shuffle: bool = True,
        on_corrupt: OnCorrupt = "error",
        max_corrupt_share: float = 0.01,
        pin_memory: bool = False,
        features: bool = False,
        shape: tuple[int, ...] | None = None,
        quality: bool = False,
    ) -> None:
        self.sources, self.resolution_px, self.seed, self.shuffle = list(sources), resolution_px, seed, shuffle
        self.names = [source.name for source in sources]
        self.caption_shape = one_shape(
            "caption", {s.name: (s.description.caption_length, s.description.caption_width) for s in sources}
        )
        shapes = {s.name: shape or latent_shape(s.reader, resolution_px) for s in sources}
        self.latent_shape = one_shape("latent", shapes)
        self.shares = {self.latent_shape: 1.0}  # of each shape of latents in the stream
        self.starts = [0]  # where each begins, unshuffled
        # By the names in a batch: field and shape, of latents those of the first square.
        self.fixed = {"latents": (latents_field(resolution_px), self.latent_shape)}
        if features:
            shapes = {s.name: s.reader.index.usual_shape(FEATURES_FIELD) for s in sources}
            self.fixed["features"] = (FEATURES_FIELD, one_shape("feature", shapes))
        if quality:
            self.fixed["quality"] = (QUALITY_FIELD, (1,))
        self.policy = CorruptionPolicy(on_corrupt, max_corrupt_share)
        self.buffers, self._lock, self._process = BatchBuffers(), Lock(), os.getpid()
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self._mix = Interleave([s.weight for s in sources]) if shuffle else EachOnce([s.samples for s in sources])
        self._orders = [SourceOrder(s.shard_rows, seed_of(seed, s.name)) for s in sources]

    def __len__(self) -> int:
        """Samples in all sources together; a shuffled stream goes on for ever."""
        return sum(source.samples for source in self.sources)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The batch of these positions, in their order. CorruptSampleError, TooCorruptError: see `on_corrupt`."""
        where = np.asarray(positions, dtype=np.int64)
        sources, numbers = self._mix.locate(where)
        made = {name: self._allocate((len(where), *shape)) for name, (_, shape) in self.fixed.items()}
        made["captions"] = self._allocate((len(where), *self.caption_shape))
        arrays = {name: tensor.numpy() for name, tensor in made.items()}
        replaced = torch.zeros(len(where), dtype=torch.bool)
        failures = self._read(sources, numbers, np.arange(len(where)), arrays)
        self.policy.count_read(len(where))
        for slot, error in sorted(failures.items()):
            self.policy.handle(error)
            self._replace(int(sources[slot]), int(numbers[slot]), slot, arrays)
            replaced[slot] = True
        return Batch(
            **made,  # pyright: ignore[reportArgumentType]
            source=torch.from_numpy(sources.astype(np.int64)),
            position=torch.from_numpy(where.copy()),
            replaced=replaced,
        )

    def __getitem__(self, position: int) -> Batch:
        """The batch of one position."""
        return self.__getitems__([position])

    def source_counts(self, positions: int) -> dict[str, int]:
        """How many of the first `positions` samples of a shuffled stream come from each source."""
        assert isinstance(self._mix, Interleave)
        return dict(zip(self.names, self._mix.counts(positions).tolist(), strict=True))

    def shards_of(self, positions: Sequence[int]) -> list[str]:
        """The shards that hold the samples at these positions, with their folders."""
        sources, numbers = self._mix.locate(np.asarray(positions, dtype=np.int64))
        found = set()
        for source in np.unique(sources):
            reader = self.sources[source].reader
            rows, *_ = self._locate(int(source), numbers[sources == source])
            found |= {f"{reader.shards.folder}/{reader.index.shards[shard]}" for shard in reader.shards_of(rows)}
        return sorted(found)

    def _locate(self, source: int, numbers: Int64[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The row of each running number of a source, and which of its captions and of its squares it takes this
        time."""
        reader, chosen = self.sources[source].reader, self.sources[source]
        if not self.shuffle:
            rows = chosen.row(numbers % chosen.samples)
            return rows, np.zeros_like(rows), np.zeros_like(rows)
        with self._own_lock():  # threads share what is remembered of the order
            epochs, shards, within = self._orders[source].locate(numbers)
        rows = chosen.row(chosen.row_starts[shards] + within)
        times = epochs * reader.index.rows + rows
        latents = re.compile(rf"latents_{self.resolution_px}(_\d+)?\.npy")
        captions = [name for name in reader.index.fields if name.startswith("caption")]
        views = [name for name in reader.index.fields if latents.fullmatch(name)]
        return (
            rows,
            self._one_of(captions, "caption", source, rows, times),
            self._one_of(views, "view", source, rows, times),
        )

    def _one_of(
        self, fields: Sequence[str], what: str, source: int, rows: Int64[np.ndarray, " n"], times: np.ndarray
    ) -> Int64[np.ndarray, " n"]:
        """Which of several fields each row takes, of those that it has: one of them at random each time."""
        if len(fields) < 2:
            return np.zeros_like(rows)
        index = self.sources[source].reader.index
        present = sum((index.column(name, "offset")[rows] != ABSENT["offset"]).astype(np.int64) for name in fields)
        chance = draws(seed_of(self.seed, self.names[source], what), times)
        return (chance % np.maximum(present, 1).astype(np.uint64)).astype(np.int64)

    def _read(
        self, sources: np.ndarray, numbers: np.ndarray, slots: np.ndarray, arrays: Mapping[str, np.ndarray]
    ) -> Failures:
        """Fill each of `arrays` (of a batch, by name) at [slots]; returns what failed, by slot."""
        failures: Failures = {}
        for source in np.unique(sources):
            mine = np.flatnonzero(sources == source)
            reader = self.sources[source].reader
            if self.shuffle and reader.shards.distant:
                self._fetch_ahead(int(source), int(numbers[mine].min()))
            rows, caption_numbers, views = self._locate(int(source), numbers[mine])
            for view, number in np.unique(np.stack([views, caption_numbers]), axis=1).T.tolist():
                chosen = np.flatnonzero((caption_numbers == number) & (views == view))
                fields = {field: arrays[name] for name, (field, _) in self.fixed.items() if name != "latents"}
                fields[latents_field(self.resolution_px, view)] = arrays["latents"]
                fields[caption_field(number)] = arrays["captions"]
                failures |= reader.read(fields, rows[chosen], slots[mine][chosen])
        return failures

    def _fetch_ahead(self, source: int, number: int) -> None:
        """Tell where the shards are which of them are read from this number on."""
        with self._own_lock():
            shards = self._orders[source].window_shards(number, windows_ahead=1)
        self.sources[source].reader.shards.ahead(shards.tolist())

    def _replace(self, source: int, number: int, slot: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Put the nearest readable sample further on in the source's order into a slot, in strides that double."""
        failure: CorruptSampleError | None = None
        for attempt in range(1, ATTEMPTS + 1):
            found = self._read(np.array([source]), np.array([number + 2**attempt - 1]), np.array([slot]), arrays)
            if not found:
                return
            failure = found[slot]
        raise CorruptSampleError(
            f"found no readable sample of {self.names[source]} to take the place of a broken one; the last: {failure}"
        )

    def _allocate(self, shape: tuple[int, ...]) -> Float16[Tensor, "*shape"]:
        """Room for a batch; in a worker process, room that the main process sees without a copy."""
        if get_worker_info() is None:
            # Page-locked memory is kept by torch itself, which knows when a copy to the GPU has ended.
            return (
                torch.empty(shape, dtype=torch.float16, pin_memory=True)
                if self.pin_memory
                else self.buffers.take(shape)
            )
        storage = torch.UntypedStorage._new_shared(2 * int(np.prod(shape)))
        return torch.empty(0, dtype=torch.float16).set_(storage, 0, torch.Size(shape))  # pyright: ignore[reportCallIssue]

    def _own_lock(self) -> Lock:
        """The lock of this process: one that was forked may have been born while a thread held the other."""
        if self._process != os.getpid():
            self._lock, self._process = Lock(), os.getpid()
        return self._lock

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state | {"_lock": Lock(), "_process": os.getpid()}


def latent_shape(reader: ShardReader, resolution_px: int) -> tuple[int, ...]:
    """The shape of the latents at a resolution. MismatchError where there are none."""
    field = latents_field(resolution_px)
    if field not in reader.index.fields:
        found = [name for name in reader.index.fields if name.startswith("latents_")]
        raise MismatchError(
            f"{reader.index.path.parent} has no latents at {resolution_px} px, only {', '.join(found) or 'none'}. "
            f"Prepare them with resolutions_px=[{resolution_px}], or train at a resolution that is there"
        )
    return reader.index.usual_shape(field)


def one_shape(what: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    """The shape that all sources share. MismatchError naming them where they differ."""
    if len(set(shapes.values())) != 1:
        listed = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise MismatchError(
            f"the {what}s of the mix differ in shape ({listed}): prepare all sources with the same encoders"
        )
    shape = next(iter(shapes.values()))
    if not all(0 < side <= MOST_NUMBERS for side in shape) or math.prod(shape) > MOST_NUMBERS:
        raise MismatchError(f"the {what}s of {', '.join(shapes)} have the shape {shape}, which nobody prepared")
    return shape


FREE_BUFFERS = 16


class BatchBuffers:
    """Hands out half-precision tensors whose memory comes back when nothing refers to it any more."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...]) -> Float16[Tensor, "*shape"]:
        """A tensor of any content."""
        size = int(np.prod(shape))
        free = self._free.setdefault(size, [])
        buffer = free.pop() if free else np.empty(size, np.float16)
        # torch keeps `lent` for as long as any tensor shares its storage.
        lent = buffer[:]
        weakref.finalize(lent, give_back, free, buffer).atexit = False
        return torch.from_numpy(lent).view(shape)

    def __reduce__(self) -> tuple[Callable[[], "BatchBuffers"], tuple[()]]:
        return BatchBuffers, ()


def give_back(free: list[np.ndarray], buffer: np.ndarray) -> None:
    """Keep a buffer for the next batch, unless many lie there already."""
    if len(free) < FREE_BUFFERS:
        free.append(buffer)
