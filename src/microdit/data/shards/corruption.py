"""What happens to a sample that cannot be read: named, counted, and either the end or replaced."""

import logging
from typing import Literal

OnCorrupt = Literal["error", "skip"]
FIRST_JUDGED = 1000  # samples read before the share of broken ones says anything
log = logging.getLogger(__name__)


class CorruptSampleError(ValueError):
    """A sample is not what its index says; the message names shard, key, field and cause."""


class TooCorruptError(ValueError):
    """More samples are broken than the run may skip."""


class CorruptionPolicy:
    """Decides about each broken sample, and remembers which were named.

    `on_corrupt`: "error" raises the CorruptSampleError; "skip" logs it once, counts it, and lets the caller put another
    sample in its place, until more than `max_share` of what this process read is broken: TooCorruptError.
    """

    def __init__(self, on_corrupt: OnCorrupt = "error", max_share: float = 0.01) -> None:
        if on_corrupt not in ("error", "skip"):
            raise ValueError(f"on_corrupt must be error or skip, got {on_corrupt!r}")
        if not 0 <= max_share <= 1:
            raise ValueError(f"the share of broken samples to allow must lie in [0, 1], got {max_share}")
        self.on_corrupt, self.max_share = on_corrupt, max_share
        self.read = self.broken = 0
        self._named: set[str] = set()

    def count_read(self, samples: int) -> None:
        """Note that so many samples were asked for."""
        self.read += samples

    def handle(self, error: CorruptSampleError) -> None:
        """Raise, or count and name the broken sample."""
        if self.on_corrupt == "error":
            raise CorruptSampleError(
                f"{error}. Repair the data, or train past it with reading.on_corrupt=skip"
            ) from error
        self.broken += 1
        if str(error) not in self._named:
            self._named.add(str(error))
            log.warning("skipped and replaced: %s", error)
        if self.broken > self.max_share * max(self.read, FIRST_JUDGED):
            raise TooCorruptError(
                f"{self.broken} of {self.read} samples read were broken, more than the allowed share of "
                f"{self.max_share:.2%}; "
                f"the last: {error}. Repair the data, or allow a larger share with reading.max_corrupt_share"
            ) from error
