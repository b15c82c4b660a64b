"""Checkpoints by step, never half-written, the last few kept."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from microdit.checkpoints import checkpoints_of


class StepCheckpoints(Checkpoint):
    """Saves every `every_n_steps` and at the last step, as checkpoints/step_0001000.ckpt; keeps the newest `keep`.

    A file appears under its name only when it is complete, and older ones go only after that.
    """

    def __init__(self, run: Path, every_n_steps: int, keep: int):
        self.run, self.every_n_steps, self.keep = run, every_n_steps, keep
        self.saved_step = -1

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        step = trainer.global_step
        if step == self.saved_step or step == 0:
            return  # in the middle of an accumulated step
        if step % self.every_n_steps == 0 or step == trainer.max_steps:
            self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        step = self.saved_step = trainer.global_step
        target = self.run / "checkpoints" / f"step_{step:07d}.ckpt"
        partial = target.with_name(f".{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            partial.replace(target)
            for old in checkpoints_of(self.run)[: -self.keep]:
                old.unlink()
