"""Which positions of the stream a rank reads at each step, and threads that make these batches ahead of their use.

Reading leaves the interpreter to the training loop, and nothing has to be sent between processes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Generic, Protocol, TypeVar, runtime_checkable

from torch.utils.data import Sampler


class GlobalBatches(Sampler[list[int]]):
    """Endless batches of positions for one rank. Step t of training owns positions [t * global_batch_size, (t + 1) *
    global_batch_size); each rank takes one contiguous part of them, in micro-batches of `device_batch_size`.

    The state is `start_step`, one integer; the union over ranks does not depend on `world_size`.
    ValueError where the global batch does not divide.
    """

    def __init__(
        self,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device_batch_size: int | None = None,
        start_step: int = 0,
    ) -> None:
        share, remainder = divmod(global_batch_size, world_size)
        device_batch_size = device_batch_size or share
        if remainder or share % device_batch_size:
            raise ValueError(
                f"a global batch of {global_batch_size} does not divide among {world_size} ranks in micro-batches of "
                f"{device_batch_size}: choose a global batch that is a multiple of {world_size * device_batch_size}"
            )
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not among {world_size} ranks")
        self.global_batch_size, self.device_batch_size = global_batch_size, device_batch_size
        self.micro_batches = share // device_batch_size
        self.first, self.start_step = rank * share, start_step

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            for micro_batch in range(self.micro_batches):
                first = step * self.global_batch_size + self.first + micro_batch * self.device_batch_size
                yield list(range(first, first + self.device_batch_size))
            step += 1


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
