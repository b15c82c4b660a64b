"""Training's and validation's batches: latents by position, from the step that training is at."""

import lightning as L

from microdit.data.loader import LatentLoader
from microdit.data.positions import GlobalBatches
from microdit.data.stream import LatentStream
from microdit.training.chance import TRAINING, VALIDATION, Samples


class LatentData(L.LightningDataModule):
    """Batches of latents, captions and chance.

    Step t of training reads positions [t * global_batch_size, (t + 1) * global_batch_size) whatever the number of ranks
    and workers; after a resume it starts at the step that the checkpoint holds.
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
        device_batch_size: int | None,
        validation_batch_size: int,
        num_workers: int,
    ):
        super().__init__()
        self.train_samples = Samples(train, seed, TRAINING, patch_size, caption_dropout)
        # Validation's noise is the same in every run, whatever its seed, so that runs can be compared.
        self.validation_samples = Samples(validation, 0, VALIDATION, patch_size, caption_dropout=0.0)
        self.global_batch_size, self.device_batch_size = global_batch_size, device_batch_size
        self.validation_batch_size, self.num_workers = validation_batch_size, num_workers

    def train_dataloader(self) -> LatentLoader:
        assert self.trainer is not None
        batches = GlobalBatches(
            self.global_batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            device_batch_size=self.device_batch_size,
            start_step=self.trainer.global_step,
        )
        return LatentLoader(self.train_samples, batches, self.num_workers)

    def val_dataloader(self) -> LatentLoader:
        assert self.trainer is not None
        size, ranks, rank = self.validation_batch_size, self.trainer.world_size, self.trainer.global_rank
        positions = range(rank, len(self.validation_samples), ranks)
        batches = [list(positions[i : i + size]) for i in range(0, len(positions), size)]
        return LatentLoader(self.validation_samples, batches, self.num_workers)
