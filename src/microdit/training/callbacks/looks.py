"""Metrics during training: how captions come to be followed, by few pictures every so often."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from microdit.evaluation.metric import Look, keep_shown
from microdit.evaluation.sharing import Ranks, all_ranks
from microdit.evaluation.subject import Subject
from microdit.pipeline import LatentDiffusion
from microdit.runs.folder import EVALUATION, checkpoint_path
from microdit.training.callbacks.samples import IN_THE_WAY
from microdit.training.callbacks.telemetry import Telemetry
from microdit.training.module import DenoisingTask

log = logging.getLogger(__name__)


class Looks(L.Callback):
    """Measures a run with each of `looks` when it is due, and logs the numbers; all ranks share the work. What was
    judged is kept in RUN/evaluation, under the name that a checkpoint of that step has there.

    The last step is measured when training ends. `made` are the steps that have numbers: a run that was told to stop
    saved its step at once, and a resumed one first makes what is missing. What stands in the way costs a warning, and
    training goes on; of several ranks the others would wait for one that failed, so that it ends the run.
    """

    def __init__(
        self, run: Path, looks: Mapping[str, Look], pipeline: LatentDiffusion, telemetry: Telemetry, made: set[int]
    ):
        self.run, self.looks, self.pipeline, self.telemetry, self.made = run, looks, pipeline, telemetry, made
        self.step = 0
        self.ranks: Ranks | None = None  # they meet once training has begun

    def due(self, trainer: L.Trainer) -> dict[str, Look]:
        among = 0 < self.step < trainer.max_steps
        return {name: look for name, look in self.looks.items() if among and self.step % look.every_n_steps == 0}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        # Rank zero has read metrics.csv, which it may be writing.
        if (due := self.due(trainer)) and not trainer.strategy.broadcast(self.step in self.made):
            self.look(due, trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step == self.step:
            return  # in the middle of an accumulated step
        self.step = trainer.global_step
        if due := self.due(trainer):
            self.look(due, trainer, pl_module)

    def look(self, due: Mapping[str, Look], trainer: L.Trainer, task: L.LightningModule) -> None:
        assert isinstance(task, DenoisingTask)
        if self.ranks is None:
            self.ranks = all_ranks()
        pipeline = self.pipeline.with_network(task.whole_network()).to(task.device)
        label = [f"checkpoint={checkpoint_path(self.run, self.step).stem}"]
        for name, look in due.items():
            subject = Subject(pipeline, self.run / EVALUATION, label, ranks=self.ranks)
            try:
                with isolate_rng():  # a network that is read is first drawn at random
                    numbers, shown = look.evaluate(subject)
                if shown is not None and self.ranks.leads:
                    keep_shown(shown, subject.kept_in / f"{name}.png")
            except IN_THE_WAY as error:
                if self.ranks.count > 1:
                    raise
                log.warning("metrics.%s is not measured at step %d (%s); training goes on", name, self.step, error)
                continue
            self.telemetry.tell(trainer, numbers)
        for encoder in (pipeline.autoencoder, pipeline.text_encoder):
            encoder.to("cpu")  # training has better use for the memory
