"""The order of the data: which source gives the k-th sample, and which of its samples that is, as functions of k.

In every epoch of a source the shards are shuffled, cut into windows of several shards, and the samples of each window
shuffled. So an epoch holds every sample once, only a window's shards are read at a time, and nothing larger than a
window is held.
"""

from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from hashlib import blake2b
from math import gcd, lcm

import numpy as np
from jaxtyping import Int, Int64, UInt64

PERIOD = 65_536  # the longest pattern; shares are exact up to 1 / PERIOD


def whole_shares(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers in the same proportion, their sum at most PERIOD, each at least 1.

    Exact where PERIOD allows (7 and 3 for 0.7 and 0.3), else rounded. ValueError unless every weight is positive.
    """
    if not weights or any(not 0 < weight < float("inf") for weight in weights):
        raise ValueError(f"every weight of a mix must be positive and finite, got {list(weights)}")
    fractions = [Fraction(str(weight)) for weight in weights]
    denominator = lcm(*(fraction.denominator for fraction in fractions))
    shares = [int(fraction * denominator) for fraction in fractions]
    divisor = gcd(*shares)
    shares = [share // divisor for share in shares]
    if sum(shares) <= PERIOD:
        return shares
    total = sum(shares)
    return [max(1, round(share * (PERIOD - len(shares)) / total)) for share in shares]


class Interleave:
    """An endless, evenly spread sequence in which source s has the share weights[s] / sum(weights)."""

    def __init__(self, weights: Sequence[float]) -> None:
        shares = whole_shares(weights)
        sources = np.repeat(np.arange(len(shares)), shares)
        turns = np.concatenate([np.arange(share) for share in shares])
        # The j-th of c turns belongs at (j + 1/2) / c of the period.
        pattern = np.lexsort((sources, (turns + 0.5) / np.asarray(shares)[sources]))
        self._sources, self._turns = sources[pattern], turns[pattern]
        self._shares = np.asarray(shares, dtype=np.int64)

    def locate(self, positions: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(source, how many samples of that source came before) for these positions of the mixed sequence."""
        periods, slots = np.divmod(np.asarray(positions, dtype=np.int64), len(self._sources))
        sources = self._sources[slots]
        return sources, periods * self._shares[sources] + self._turns[slots]

    def counts(self, positions: int) -> Int64[np.ndarray, " s"]:
        """How many of the first `positions` positions each source gives."""
        periods, rest = divmod(positions, len(self._sources))
        return periods * self._shares + np.bincount(self._sources[:rest], minlength=len(self._shares))


class EachOnce:
    """The finite counterpart: every sample of every source once, the sources spread evenly among each other."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sources = np.repeat(np.arange(len(sizes)), sizes)
        self._rows = np.concatenate([np.arange(size) for size in sizes])
        if len(sizes) > 1:
            pattern = np.lexsort((self._sources, (self._rows + 0.5) / np.asarray(sizes)[self._sources]))
            self._sources, self._rows = self._sources[pattern], self._rows[pattern]

    def locate(self, positions: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(source, row of that source) for these positions. IndexError past the end."""
        return self._sources[positions], self._rows[positions]


WINDOW_SAMPLES = 65_536
WINDOW_SHARDS = 8
WINDOWS_HELD = 8


def scramble(numbers: UInt64[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """A fixed bijection of 64-bit numbers that looks random (the finaliser of splitmix64); the same in every
    release."""
    numbers = numbers + np.uint64(0x9E3779B97F4A7C15)
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def seed_of(*parts: int | str) -> int:
    """One 64-bit seed from several numbers and names."""
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def draws(seed: int, numbers: Int[np.ndarray, "*n"]) -> UInt64[np.ndarray, "*n"]:
    """A uniform 64-bit number for each of `numbers`, a pure function of it and `seed`."""
    return scramble(scramble(np.asarray(numbers).astype(np.uint64)) ^ np.uint64(seed))


def permutation(seed: int, length: int) -> Int64[np.ndarray, " length"]:
    """A permutation of range(length), a pure function of its arguments."""
    return np.argsort(draws(seed, np.arange(length)), kind="stable")


class SourceOrder:
    """Shards of `shard_sizes` samples each, read for ever. Memory grows with the shards, not with the samples.

    `window_samples`: about how many samples are shuffled together; by default 65,536, or 8 shards where shards are
    large. ValueError where there is no sample at all.
    """

    def __init__(self, shard_sizes: Int[np.ndarray, " s"], seed: int, window_samples: int | None = None) -> None:
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.samples = int(self.shard_sizes.sum())
        if self.samples == 0:
            raise ValueError("there is no sample to order: every shard is empty")
        self.seed = seed
        self.window_samples = window_samples or max(WINDOW_SAMPLES, WINDOW_SHARDS * int(self.shard_sizes.max()))
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def locate(
        self, numbers: Int64[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """(epoch, shard, row in the shard) of the samples with these running numbers."""
        epochs, within = np.divmod(np.asarray(numbers, dtype=np.int64), self.samples)
        shards, rows = np.empty_like(within), np.empty_like(within)
        for epoch in np.unique(epochs):
            order, shard_starts, window_firsts = self._epoch(int(epoch))
            window_starts = shard_starts[window_firsts]
            members = np.flatnonzero(epochs == epoch)
            windows = np.searchsorted(window_starts, within[members], side="right") - 1
            for window in np.unique(windows):
                chosen = members[windows == window]
                shuffled = self._window(int(epoch), int(window))
                place = window_starts[window] + shuffled[within[chosen] - window_starts[window]]
                slot = np.searchsorted(shard_starts, place, side="right") - 1
                shards[chosen], rows[chosen] = order[slot], place - shard_starts[slot]
        return epochs, shards, rows

    def window_shards(self, number: int, windows_ahead: int = 0) -> Int64[np.ndarray, " m"]:
        """The shards that are read around sample `number`, and those of the next `windows_ahead` windows, in order."""
        epoch, within = divmod(number, self.samples)
        order, shard_starts, window_firsts = self._epoch(epoch)
        window = int(np.searchsorted(shard_starts[window_firsts], within, side="right")) - 1
        shards = []
        for _ in range(windows_ahead + 1):
            if window == len(window_firsts):
                epoch, window = epoch + 1, 0
                order, _, window_firsts = self._epoch(epoch)
            last = window_firsts[window + 1] if window + 1 < len(window_firsts) else len(order)
            shards.append(order[window_firsts[window] : last])
            window += 1
        return np.concatenate(shards)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shards in the order of this epoch, the running number where each starts, and the first slot of each
        window."""
        if epoch not in self._epochs:
            # Empty shards have no place in the order: two slots would start at the same number.
            filled = np.flatnonzero(self.shard_sizes)
            order = filled[permutation(seed_of(self.seed, "shards", epoch), len(filled))]
            ends = np.cumsum(self.shard_sizes[order])
            starts = ends - self.shard_sizes[order]
            # A window takes the shards that start within the same stretch of about `window_samples`.
            stretches = max(1, round(self.samples / self.window_samples))
            firsts = np.unique(starts * stretches // self.samples, return_index=True)[1]
            self._epochs[epoch] = order, starts, firsts
            while len(self._epochs) > 3:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """The shuffled places of one window's samples."""
        if (epoch, window) not in self._windows:
            _, starts, firsts = self._epoch(epoch)
            bounds = [*starts[firsts], self.samples]
            length = int(bounds[window + 1] - bounds[window])
            self._windows[epoch, window] = permutation(seed_of(self.seed, "window", epoch, window), length)
            while len(self._windows) > WINDOWS_HELD:
                self._windows.popitem(last=False)
        return self._windows[epoch, window]
