"""Pictures during training: the same prompts and the same noise each time, so that one sees learning."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL.Image import Image
from torch import Tensor

from microdit.evaluation.sharing import Ranks, all_ranks, batches_of
from microdit.files import replacing
from microdit.grid import prompt_grid
from microdit.pipeline import LatentDiffusion
from microdit.runs.folder import sample_path
from microdit.training.module import DenoisingTask
from microdit.training.settings import SampleSettings

log = logging.getLogger(__name__)
AT_ONCE = 8
"""Pictures drawn at once, on however many devices, so that a picture does not depend on their number."""
IN_THE_WAY = (OSError, ValueError, ArithmeticError, RuntimeError)


class SampleGrids(L.Callback):
    """Writes samples/step_0001000.png with the prompts under the pictures, also to loggers that take pictures."""

    def __init__(self, run: Path, settings: SampleSettings, pipeline: LatentDiffusion):
        self.run, self.settings, self.pipeline = run, settings, pipeline
        self.drawn_step = -1
        self.ranks: Ranks | None = None  # they meet once training has begun

    def is_due(self, trainer: L.Trainer) -> bool:
        step = trainer.global_step
        due = step % self.settings.every_n_steps == 0 or step == trainer.max_steps
        return due and step > 0 and bool(self.settings.prompts)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that was told to stop saved its step at once, without its pictures."""
        self.drawn_step = trainer.global_step
        there = sample_path(self.run, self.drawn_step).exists()
        if self.is_due(trainer) and not trainer.strategy.broadcast(there):
            self.draw_together(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.global_step != self.drawn_step and self.is_due(trainer):
            self.drawn_step = trainer.global_step
            self.draw_together(trainer, pl_module)

    def draw_together(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        """All ranks give their parts of the network, each draws some of the pictures, and rank zero writes them. What
        stands in the way of pictures costs a warning: training goes on without them."""
        assert isinstance(task, DenoisingTask)
        pipeline = self.pipeline.with_network(task.whole_network()).to(task.device)
        if self.ranks is None:
            self.ranks = all_ranks()
        drawn = self.ranks.each(
            batches_of(len(self.settings.prompts), AT_ONCE), lambda batch: self.drawn(pipeline, batch)
        )
        for encoder in (pipeline.autoencoder, pipeline.text_encoder):
            encoder.to("cpu")  # training has better use for the memory
        if self.ranks.leads:
            self.draw(trainer, drawn)

    def draw(self, trainer: L.Trainer, drawn: list[Tensor | str]) -> None:
        """Writes what was drawn, in batches, or why one of them was not."""
        path = sample_path(self.run, trainer.global_step)
        reason = next((batch for batch in drawn if isinstance(batch, str)), None)
        if reason is None:
            try:
                images = torch.cat([batch for batch in drawn if isinstance(batch, Tensor)])
                self.write(prompt_grid(images, self.settings.prompts), path, trainer)
            except IN_THE_WAY as error:
                reason = str(error)
        if reason is not None:
            log.warning("%s is not drawn (%s); training goes on", path, reason)

    def drawn(self, pipeline: LatentDiffusion, batch: range) -> Tensor | str:
        """The pictures of these prompts, or why there are none."""
        s = self.settings
        try:
            return pipeline.generate(
                s.prompts[batch.start : batch.stop],
                seed=s.seed,
                first=batch.start,
                sampler=s.sampler,
                num_inference_steps=s.num_inference_steps,
                guidance_scale=s.guidance_scale,
                guidance_interval=s.guidance_interval,
                temperature=s.temperature,
            ).cpu()
        except IN_THE_WAY as error:
            return str(error)

    def write(self, grid: Image, path: Path, trainer: L.Trainer) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "wb") as file:
            grid.save(file, "png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(grid), trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("samples", [grid], step=trainer.global_step)
