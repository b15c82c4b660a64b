"""Validation: the unmasked denoising loss of what one would generate with, at noise that never changes."""

from typing import Any

import lightning as L
import torch

from microdit.distributed.sharding import in_parts_again, summed
from microdit.training.callbacks.telemetry import Telemetry
from microdit.training.data import LatentData
from microdit.training.module import DenoisingTask


class Validation(L.Callback):
    """Logs validation/loss at regular steps and at the last one: what is recorded of a run is what it ended with.

    It comes before the checkpoint of the same step, so that a run that is killed between the two repeats the step. One
    that was told to stop saved its step at once: a resumed run first makes the validation that is missing. `made` are
    the steps that have one.
    """

    def __init__(self, data: LatentData, every_n_steps: int, telemetry: Telemetry, made: set[int]):
        self.data, self.every_n_steps, self.telemetry, self.made = data, every_n_steps, telemetry, made
        self.step = 0

    def is_due(self, trainer: L.Trainer) -> bool:
        return self.step > 0 and (self.step % self.every_n_steps == 0 or self.step == trainer.max_steps)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        # Rank zero has read metrics.csv, which it may be writing.
        if self.is_due(trainer) and not trainer.strategy.broadcast(self.step in self.made):
            self.validate(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            return  # in the middle of an accumulated step
        self.step = trainer.global_step
        if self.is_due(trainer):
            self.validate(trainer, pl_module)

    @torch.no_grad()
    def validate(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        assert isinstance(task, DenoisingTask)
        sums = torch.zeros(2, dtype=torch.float64, device=task.device)
        task.eval()
        for batch in self.data.validation_loader():
            batch = trainer.strategy.batch_to_device(batch, task.device)
            with trainer.precision_plugin.val_step_context():
                terms = task.loss(task.best_network, batch, mask_ratio=0.0)
            # Every rank has as many batches as the others, so some repeat a sample that is another rank's.
            own = batch["position"] % trainer.world_size == trainer.global_rank
            sums += torch.stack([(terms.per_sample * own).sum(), own.sum()])
        in_parts_again(task.best_network)
        task.train()
        total, samples = summed(sums).tolist()
        self.telemetry.tell(trainer, {"validation/loss": total / samples})
