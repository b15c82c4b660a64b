"""Pictures of several shapes: each step of training reads samples of one of them, from a stream of its own.

The k-th sample is still a function of (seed, mix, k, batch), so the whole state is one integer, whoever reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch.utils.data import Dataset

from microdit.data.shards.description import MismatchError
from microdit.data.shards.index import HALF
from microdit.data.shards.tars import latents_field
from microdit.data.stream.order import Interleave, seed_of
from microdit.data.stream.stream import Batch, LatentSource, LatentStream, latent_shape

MOST_BUCKETS = 64
Shape = tuple[int, ...]


class BucketStream(Dataset[Batch]):
    """As `LatentStream`, of which it has one for each shape of latents: the `batch_size` positions of a step have one
    shape. Which one is spread evenly by the share that the samples of each have in the mix.

    Without `shuffle` the shapes come one after the other, from `starts` on, every sample once. `options`: of each
    stream. MismatchError where the sources do not fit together, or have more shapes than can be meant.
    """

    def __init__(
        self,
        sources: Sequence[LatentSource],
        resolution_px: int,
        seed: int,
        batch_size: int,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        self.sources, self.batch_size, self.shuffle = list(sources), batch_size, shuffle
        self.names = [source.name for source in sources]
        parts: dict[Shape, list[LatentSource]] = {}
        for source in sources:
            for shape, rows in rows_by_shape(source, resolution_px).items():
                share = source.weight * len(rows) / source.samples
                parts.setdefault(shape, []).append(replace(source, weight=share, rows=rows))
        if len(parts) > MOST_BUCKETS:
            raise MismatchError(
                f"{', '.join(self.names)}: {len(parts)} shapes of latents, more than {MOST_BUCKETS} are not meant: "
                "prepare the data anew"
            )
        # By their shape, so that the order of sources does not show.
        self.streams = {
            shape: LatentStream(
                parts[shape], resolution_px, seed_of(seed, "bucket", *shape), shuffle, shape=shape, **options
            )
            for shape in sorted(parts)
        }
        weights = [sum(source.weight for source in parts[shape]) for shape in self.streams]
        self.shares = {shape: weight / sum(weights) for shape, weight in zip(self.streams, weights, strict=True)}
        self.blocks = Interleave(weights)
        self.starts = np.cumsum([0, *map(len, self.streams.values())])[:-1].tolist()
        self.caption_shape = next(iter(self.streams.values())).caption_shape
        self.policy = next(iter(self.streams.values())).policy
        for stream in self.streams.values():
            stream.policy = self.policy  # one share of broken samples for all

    def __len__(self) -> int:
        """Samples in all sources together; a shuffled stream goes on for ever."""
        return sum(source.samples for source in self.sources)

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        """The batch of these positions, in their order. ValueError where they are of several shapes; otherwise as
        `LatentStream`."""
        stream, inner = self._inner(positions)
        batch = stream.__getitems__(inner)
        numbers = torch.tensor([self.names.index(name) for name in stream.names])
        batch["source"] = numbers[batch["source"]]
        batch["position"] = torch.tensor(list(positions), dtype=torch.int64)
        return batch

    def __getitem__(self, position: int) -> Batch:
        """The batch of one position."""
        return self.__getitems__([position])

    def source_counts(self, positions: int) -> dict[str, int]:
        """How many of the first `positions` samples of a shuffled stream come from each source."""
        blocks, rest = divmod(positions, self.batch_size)
        counts = self.blocks.counts(blocks) * self.batch_size
        counts[self.blocks.locate(np.array([blocks]))[0][0]] += rest
        total = dict.fromkeys(self.names, 0)
        for stream, count in zip(self.streams.values(), counts.tolist(), strict=True):
            for name, more in stream.source_counts(count).items():
                total[name] += more
        return total

    def shards_of(self, positions: Sequence[int]) -> list[str]:
        """The shards that hold the samples at these positions, with their folders."""
        stream, inner = self._inner(positions)
        return stream.shards_of(inner)

    def _inner(self, positions: Sequence[int]) -> tuple[LatentStream, list[int]]:
        """The stream that these positions are of, and their positions there."""
        where = np.asarray(positions, dtype=np.int64)
        if self.shuffle:
            blocks, within = np.divmod(where, self.batch_size)
            buckets, turns = self.blocks.locate(blocks)
            inner = turns * self.batch_size + within
        else:
            buckets = np.searchsorted(self.starts, where, side="right") - 1
            inner = where - np.asarray(self.starts)[buckets]
        if len(np.unique(buckets)) != 1:
            raise ValueError(f"positions {where.min()} to {where.max()} are pictures of several shapes")
        return list(self.streams.values())[buckets[0]], inner.tolist()


def rows_by_shape(source: LatentSource, resolution_px: int) -> Mapping[Shape, Int64[np.ndarray, " n"]]:
    """The rows of a source by the shape of their latents. Those without any are with the most frequent, where reading
    them tells what they lack."""
    field = latents_field(resolution_px)
    usual = latent_shape(source.reader, resolution_px)
    shapes = np.array(source.reader.index.column(field, "shape"))
    bad = (source.reader.index.column(field, "dtype") != HALF) | (shapes < 1).any(axis=1)
    shapes[bad] = usual or 1
    found, numbers = np.unique(shapes, axis=0, return_inverse=True)
    order = np.argsort(numbers.reshape(-1), kind="stable")
    ends = np.cumsum(np.bincount(numbers.reshape(-1), minlength=len(found)))[:-1]
    rows = np.split(order, ends)
    return {tuple(shape): mine for shape, mine in zip(found.tolist(), rows, strict=True)}
