"""How far training is: a live bar on a terminal, a line now and then in a log."""

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from microdit.training.callbacks.telemetry import Telemetry

SECONDS_BETWEEN_LINES = 15.0


def clock(seconds: float) -> str:
    """1:02:03 for 3723 seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class TrainingProgress(ProgressBar):
    """Step, loss, images/s and time left, as the run's telemetry has them."""

    def __init__(self, console: Console, telemetry: Telemetry):
        super().__init__()
        self.console, self.telemetry = console, telemetry
        self.enabled = True
        self.last_line = 0.0
        self.bar: Progress | None = None

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last_line = time.monotonic()
        self.step = trainer.global_step
        if self.enabled and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[told]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task("training", total=trainer.max_steps, completed=self.step, told="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.enabled or trainer.global_step == self.step:
            return
        now, step, speed = time.monotonic(), trainer.global_step, self.telemetry.images_per_second
        self.step = step
        in_a_log = self.bar is None and (now - self.last_line > SECONDS_BETWEEN_LINES or step == trainer.max_steps)
        if (self.bar is not None and step % 5 == 0) or in_a_log:
            loss = self.telemetry.latest.get("train/loss")  # of the newest logged step, over all ranks
            left = (trainer.max_steps - step) * self.telemetry.costs.global_batch_size / max(speed, 1e-9)
            told = f"{'' if loss is None else f'loss {loss:.4f}  '}{speed:.0f} images/s  ETA {clock(left)}"
            if self.bar is not None:
                self.bar.update(self.task, completed=step, told=told)
            else:
                self.last_line = now
                self.console.print(f"step {step}/{trainer.max_steps}  {told}", highlight=False)

    def on_train_end(self, *args: Any) -> None:
        self.close()

    def on_exception(self, *args: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
