"""Training's and validation's batches: latents by position, from the step that training is at."""

from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from microdit.data.positions import GlobalBatches
from microdit.data.stream import LatentStream
from microdit.training.chance import TRAINING, VALIDATION, Samples


def first_of(batch: Any) -> Any:
    """Collation for batches that are read whole: nothing is left to do."""
    return batch


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

    def train_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        batches = GlobalBatches(
            self.global_batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            device_batch_size=self.device_batch_size,
            start_step=self.trainer.global_step,
        )
        return self.loader(self.train_samples, batches)

    def val_dataloader(self) -> DataLoader:
        assert self.trainer is not None
        size, ranks, rank = self.validation_batch_size, self.trainer.world_size, self.trainer.global_rank
        positions = range(rank, len(self.validation_samples), ranks)
        return self.loader(
            self.validation_samples, [list(positions[i : i + size]) for i in range(0, len(positions), size)]
        )

    def loader(self, samples: Samples, batches: Any) -> DataLoader:
        return DataLoader(
            samples,
            batch_sampler=batches,
            collate_fn=first_of,
            num_workers=self.num_workers,
            pin_memory=self.num_workers > 0,
            persistent_workers=self.num_workers > 0,
        )
