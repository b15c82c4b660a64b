"""Stopping in good order when the machine is wanted back: all ranks save the same step, then the process says so."""

import signal
from datetime import timedelta
from types import FrameType
from typing import Any

import lightning as L
import torch

from microdit.distributed.ranks import SIGNALS, PreemptedError
from microdit.runs.folder import to_resume
from microdit.training.callbacks.checkpoints import StepCheckpoints


class StopWhenAsked(L.Callback):
    """After SIGTERM, SIGUSR1 or SIGUSR2 to any rank, all save the step they are at and raise PreemptedError."""

    def __init__(self, checkpoints: StepCheckpoints, timeout: timedelta):
        self.checkpoints, self.timeout = checkpoints, timeout
        self.asked: int | None = None  # the signal, on the rank that got it
        self.step = -1
        self.group: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning has just put its own handler for SIGTERM here, which stops without saving; it restores what was
        # there before when training ends.
        self.before = {number: signal.signal(number, self.note) for number in SIGNALS}
        self.step = trainer.global_step
        if trainer.world_size > 1:
            # On the CPU, so that nobody waits for a GPU. It replaces what Lightning asks before every batch.
            self.group = torch.distributed.new_group(backend="gloo", timeout=self.timeout)
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            return  # in the middle of an accumulated step
        self.step = trainer.global_step
        if self.step < trainer.max_steps:  # the last step is validated and saved first, because nothing follows it
            self.stop_if_asked(trainer)

    def stop_if_asked(self, trainer: L.Trainer) -> None:
        """At once, before pictures and validation, which a resumed run makes first."""
        if self.asked_of_any():
            if self.checkpoints.saved_step < self.step:
                self.checkpoints.save(trainer, last=True)
            self.checkpoints.settle(trainer, last=True)
            raise PreemptedError(
                f"stopped at step {self.step} because a signal asked for it; the checkpoint of that step is written. "
                f"Go on with resume={to_resume(self.checkpoints.run)}",
                self.asked,
            )

    def asked_of_any(self) -> bool:
        """Whether any rank was asked; all ranks get the same answer."""
        if self.group is None:
            return self.asked is not None
        asked = torch.tensor(int(self.asked is not None))
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self.group)
        return bool(asked)

    def on_train_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.stop_if_asked(trainer)
        self.restore()

    def on_exception(self, *args: Any) -> None:
        self.restore()

    def restore(self) -> None:
        for number, handler in getattr(self, "before", {}).items():
            signal.signal(number, handler)
