"""How long training waits for its data, and a word about it while it does."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from threading import Event, Thread
from typing import Any

log = logging.getLogger(__name__)
SHARDS_NAMED = 4


class WatchedLoader:
    """Iterates over `loader`, whose batches are those of `positions`, and adds up in `seconds` how long each was
    waited for.

    A batch that does not come within `stall_seconds` is reported with the rank and its shards, which `shards_of`
    names, and again each time the wait has doubled.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        positions: Iterable[list[int]],
        shards_of: Callable[[list[int]], list[str]],
        rank: int,
        stall_seconds: float,
    ):
        self.loader, self.positions, self.shards_of = loader, positions, shards_of
        self.rank, self.stall_seconds = rank, stall_seconds
        self.seconds = 0.0
        self.waiting: tuple[float, list[int]] | None = None  # since when, and for which positions

    def __iter__(self) -> Iterator[Any]:
        closed = Event()
        Thread(target=self.watch, args=(closed,), name="watch", daemon=True).start()
        batches = iter(self.loader)
        try:
            for positions in self.positions:
                began = time.monotonic()
                self.waiting = began, positions
                batch = next(batches, None)
                self.waiting = None
                self.seconds += time.monotonic() - began
                if batch is None:
                    return
                yield batch
        finally:
            closed.set()

    def watch(self, closed: Event) -> None:
        told_at, told_about = 0.0, None
        while not closed.wait(min(1.0, self.stall_seconds / 4)):
            waiting = self.waiting
            if waiting is None:
                continue
            waited = time.monotonic() - waiting[0]
            if waiting is not told_about:
                told_at = self.stall_seconds / 2
            if waited > 2 * told_at:
                told_at, told_about = waited, waiting
                self.report(waited, waiting[1])

    def report(self, waited: float, positions: list[int]) -> None:
        shards = self.shards_of(positions)
        more = f" and {len(shards) - SHARDS_NAMED} more" if len(shards) > SHARDS_NAMED else ""
        log.warning(
            "rank %d has waited %.0f s for its data: samples %d to %d, from %s%s. Is their storage out of reach?",
            self.rank,
            waited,
            positions[0],
            positions[-1],
            ", ".join(shards[:SHARDS_NAMED]),
            more,
        )
