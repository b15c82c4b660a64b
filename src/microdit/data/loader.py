"""Batches made ahead of their use by threads.

Reading leaves the interpreter to the training loop, and nothing has to be sent between processes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, Protocol, TypeVar, runtime_checkable

BATCHES_AHEAD = 2  # by each worker
Batch = TypeVar("Batch", covariant=True)


@runtime_checkable
class Samples(Protocol[Batch]):
    """A stream of samples, or what makes more of one: anything that gives whole batches by position, in any thread."""

    def __getitems__(self, positions: list[int], /) -> Batch:
        """The batch of these positions."""
        ...


class LatentLoader(Generic[Batch]):
    """Iterates over the batches at `positions`, in their order, each made ahead by one of `workers` threads.

    With no workers a batch is made when it is asked for. An error in a worker comes in place of its batch.
    """

    def __init__(self, samples: Samples[Batch], positions: Iterable[list[int]], workers: int = 2) -> None:
        if workers < 0:
            raise ValueError(f"the number of workers must not be negative, got {workers}")
        self.samples, self.positions, self.workers = samples, positions, workers

    def __iter__(self) -> Iterator[Batch]:
        if not self.workers:
            yield from map(self.samples.__getitems__, self.positions)
            return
        positions = iter(self.positions)
        pool = ThreadPoolExecutor(self.workers, "latents")
        try:
            coming: deque[Future[Batch]] = deque()
            for batch in islice(positions, self.workers * BATCHES_AHEAD):
                coming.append(pool.submit(self.samples.__getitems__, batch))
            while coming:
                ready = coming.popleft().result()
                coming.extend(pool.submit(self.samples.__getitems__, batch) for batch in islice(positions, 1))
                yield ready
                del ready
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
