"""When checkpoints are written, what they say of themselves, and which are kept."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from rich.console import Console

from microdit.checkpoints.reading import CheckpointError
from microdit.checkpoints.writing import CheckpointFiles, discard, discard_unfinished, library_versions
from microdit.distributed.sharded_strategy import ShardedStrategy
from microdit.runs.folder import CHECKPOINTS, checkpoint_path, checkpoint_step, checkpoints_of, to_resume
from microdit.training.module import DenoisingTask
from microdit.training.settings import TrainingSettings


class StepCheckpoints(Checkpoint):
    """Saves checkpoints/step_0001000.ckpt at regular steps and at the last one.

    A checkpoint appears under its name only when it is complete, and older ones go only after that. One that cannot be
    written (a full disk) is reported and training goes on; where it would have been the last, CheckpointError. After a
    step that was skipped the weights are not trusted, so the checkpoint waits for one that was not.
    """

    def __init__(self, settings: TrainingSettings, console: Console):
        self.settings, self.run, self.hardware, self.console = settings, settings.output, settings.trainer, console
        self.saved_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            discard_unfinished(self.run / CHECKPOINTS)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, DenoisingTask)
        step, every = trainer.global_step, self.hardware.checkpoint_every_n_steps
        due = step // every > self.saved_step // every or step == trainer.max_steps
        if due and step > self.saved_step and not pl_module.skipped_in_a_row:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.settle(trainer, last=True)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Also of a run that was killed after its last checkpoint, and had nothing left to train."""
        if trainer.is_global_zero:
            discard_unfinished(self.run / CHECKPOINTS)
            self.discard_old(checkpoints_of(self.run))

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.world_size == 1:  # with others, one of them may be gone, and waiting for it would not end
            self.settle(trainer, last=False)

    def save(self, trainer: L.Trainer, last: bool = False) -> None:
        """Begins a checkpoint of this step, all ranks together; with `last` also waits for its end."""
        self.settle(trainer, last=False)
        self.saved_step = trainer.global_step
        trainer.save_checkpoint(checkpoint_path(self.run, self.saved_step))
        if last or not isinstance(trainer.strategy, ShardedStrategy):
            self.settle(trainer, last or self.saved_step == trainer.max_steps)

    def settle(self, trainer: L.Trainer, last: bool) -> None:
        """Waits for the checkpoint that is being written, then removes those that are no longer kept."""
        writer = trainer.strategy if isinstance(trainer.strategy, ShardedStrategy) else trainer.strategy.checkpoint_io
        assert isinstance(writer, ShardedStrategy | CheckpointFiles)
        failure = writer.settle()
        if not trainer.is_global_zero:
            return
        kept = checkpoints_of(self.run)
        if failure is not None:
            newest = f"the newest one is {kept[-1]}" if kept else "there is none yet"
            free = shutil.disk_usage(self.run).free / 1e9  # what torch says of a full disk does not sound like one
            told = (
                f"the checkpoint of step {self.saved_step} could not be written ({str(failure).strip()}), its disk has "
                f"{free:.3g} GB free; {newest}."
            )
            if last:
                raise CheckpointError(f"{told} Make room, then go on with resume={to_resume(self.run)}")
            self.console.print("warning:", told, "Make room: training goes on", highlight=False, markup=False)
            return
        self.discard_old(kept)

    def discard_old(self, kept: list[Path]) -> None:
        for old in kept[: -self.hardware.keep_checkpoints]:
            for_good = self.hardware.keep_every_n_steps
            if for_good is None or checkpoint_step(old) % for_good:
                discard(old)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        seen = trainer.global_step * self.settings.resolution_stage.global_batch_size
        checkpoint["metadata"] = {
            "step": trainer.global_step,
            "samples_seen": seen,
            "data": {"next_position": seen},  # the data's order is a function of the position alone
            "world_size": trainer.world_size,
            "versions": library_versions(),
            "config": self.settings.config,
        }
