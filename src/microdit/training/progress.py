"""How far training is: a live bar on a terminal, a line now and then in a log."""

import time
from collections import deque
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

WINDOW_STEPS = 50
SECONDS_BETWEEN_LINES = 15.0


def clock(seconds: float) -> str:
    """1:02:03 for 3723 seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class TrainingProgress(ProgressBar):
    """Step, loss, images/s and time left; also logs images/s, which is the speed of the training steps alone.

    `seconds` is wall-clock time from the first step, with validation, pictures and checkpoints, over all resumes.
    """

    def __init__(self, console: Console, global_batch_size: int, micro_batches: int):
        super().__init__()
        self.console, self.global_batch_size = console, global_batch_size
        self.images_per_batch = global_batch_size / micro_batches
        self.enabled = True
        self.ends: deque[float] = deque(maxlen=WINDOW_STEPS + 1)
        self.step_started = self.last_line = self.last_end = 0.0
        self.computing = self.seconds = 0.0
        self.recent_loss: float | None = None
        self.bar: Progress | None = None

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.last_line = self.last_end = time.monotonic()
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
            self.task = self.bar.add_task("training", total=trainer.max_steps, completed=trainer.global_step, told="")

    def on_train_batch_start(self, *args: Any) -> None:
        self.step_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        self.computing += now - self.step_started
        self.seconds += now - self.last_end
        self.last_end = now
        self.ends.append(self.computing)
        pl_module.log("train/images_per_second", self.images_per_second)
        if not self.enabled:
            return
        step = trainer.global_step
        in_a_log = self.bar is None and (now - self.last_line > SECONDS_BETWEEN_LINES or step == trainer.max_steps)
        if (self.bar is not None and step % 5 == 0) or in_a_log:
            loss = float(outputs["loss"])
            self.recent_loss = loss if self.recent_loss is None else 0.9 * self.recent_loss + 0.1 * loss
            left = (trainer.max_steps - step) * self.global_batch_size / max(self.images_per_second, 1e-9)
            told = f"loss {self.recent_loss:.4f}  {self.images_per_second:.0f} images/s  ETA {clock(left)}"
            if self.bar is not None:
                self.bar.update(self.task, completed=step, told=told)
            else:
                self.last_line = now
                self.console.print(f"step {step}/{trainer.max_steps}  {told}", highlight=False)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = state_dict["seconds"]

    @property
    def images_per_second(self) -> float:
        """Over the last steps; validation, pictures and checkpoints do not count."""
        if len(self.ends) < 2:
            return 0.0
        return (len(self.ends) - 1) * self.images_per_batch / (self.ends[-1] - self.ends[0])

    def on_train_end(self, *args: Any) -> None:
        self.close()

    def on_exception(self, *args: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
