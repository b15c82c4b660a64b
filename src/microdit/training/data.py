"""Training's and validation's batches: latents by position, from the step that training is at."""

import lightning as L

from microdit.data.loader import LatentLoader
from microdit.data.positions import GlobalBatches
from microdit.data.stream import LatentStream
from microdit.training.chance import TRAINING, VALIDATION, Samples
from microdit.training.waiting import WatchedLoader


class LatentData(L.LightningDataModule):
    """Batches of latents, captions and chance.

    Step t of training reads positions [t * global_batch_size, (t + 1) * global_batch_size) whatever the number of ranks
    and workers; after a resume it starts at the step that the checkpoint holds. A batch that is waited for longer than
    `stall_seconds` is reported.
    """

    def __init__(
        self,
        train: LatentStream,
        validation: LatentStream,
        *,
        seed: int,
        patch_size: int,
        caption_dropout: float,
        global_batch_size: int,
        device_batch_size: int,
        validation_batch_size: int,
        num_workers: int,
        stall_seconds: float,
    ):
        super().__init__()
        self.train_samples = Samples(train, seed, TRAINING, patch_size, caption_dropout)
        # Validation's noise is the same in every run, whatever its seed, so that runs can be compared.
        self.validation_samples = Samples(validation, 0, VALIDATION, patch_size, caption_dropout=0.0)
        self.global_batch_size, self.device_batch_size = global_batch_size, device_batch_size
        self.validation_batch_size, self.num_workers = validation_batch_size, num_workers
        self.stall_seconds = stall_seconds
        self.watched: WatchedLoader | None = None

    def train_dataloader(self) -> WatchedLoader:
        assert self.trainer is not None
        batches = GlobalBatches(
            self.global_batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            device_batch_size=self.device_batch_size,
            start_step=self.trainer.global_step,
        )
        self.watched = WatchedLoader(
            LatentLoader(self.train_samples, batches, self.num_workers),
            batches,
            self.train_samples.latents.shards_of,
            rank=self.trainer.global_rank,
            stall_seconds=self.stall_seconds,
        )
        return self.watched

    def val_dataloader(self) -> LatentLoader:
        assert self.trainer is not None
        batches = validation_batches(
            len(self.validation_samples),
            self.validation_batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return LatentLoader(self.validation_samples, batches, self.num_workers)


def validation_batches(samples: int, batch_size: int, rank: int, world_size: int) -> list[list[int]]:
    """A rank's positions, every `world_size`-th, in as many batches as every other rank has (FSDP needs that).

    Ranks that run out early end with a batch of position 0, which is rank zero's.
    """
    positions = range(rank, samples, world_size)
    batches = [list(positions[i : i + batch_size]) for i in range(0, len(positions), batch_size)]
    most = -(-len(range(0, samples, world_size)) // batch_size)
    return batches + [[0]] * (most - len(batches))
