"""Which positions of the stream a rank reads at each step: the only thing that knows of ranks."""

from collections.abc import Iterator

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
