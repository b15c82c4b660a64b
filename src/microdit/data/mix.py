"""Mixing sources by share: which source gives the k-th sample, as a function of k alone."""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from jaxtyping import Int64

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
