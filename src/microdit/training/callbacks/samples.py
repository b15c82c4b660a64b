"""Pictures during training: the same prompts and the same noise each time, so that one sees learning."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL.Image import Image

from microdit.files import replacing
from microdit.grid import prompt_grid
from microdit.model.dit import DiT
from microdit.pipeline import LatentDiffusion
from microdit.runs.folder import sample_path
from microdit.training.module import DenoisingTask
from microdit.training.settings import SampleSettings

log = logging.getLogger(__name__)


class SampleGrids(L.Callback):
    """Writes samples/step_0001000.png with the prompts under the pictures, also to loggers that take pictures."""

    def __init__(self, run: Path, settings: SampleSettings, pipeline: LatentDiffusion):
        self.run, self.settings, self.pipeline = run, settings, pipeline
        self.drawn_step = -1

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
        """All ranks give their parts of the network, rank zero draws."""
        assert isinstance(task, DenoisingTask)
        network = task.whole_network()
        if trainer.is_global_zero:
            assert network is not None
            self.draw(trainer, network, task.device)
        trainer.strategy.barrier()

    def draw(self, trainer: L.Trainer, network: DiT, device: torch.device) -> None:
        """What stands in the way of pictures costs a warning: training goes on without them."""
        path = sample_path(self.run, trainer.global_step)
        try:
            self.write(self.grid(network, device), path, trainer)
        except (OSError, ValueError, ArithmeticError, RuntimeError) as error:
            log.warning("%s is not drawn (%s); training goes on", path, error)

    def grid(self, network: DiT, device: torch.device) -> Image:
        s = self.settings
        pipeline = self.pipeline.with_network(network).to(device)
        images = pipeline.generate(
            s.prompts,
            seed=s.seed,
            sampler=s.sampler,
            num_inference_steps=s.num_inference_steps,
            guidance_scale=s.guidance_scale,
            guidance_interval=s.guidance_interval,
            temperature=s.temperature,
        )
        for encoder in (pipeline.autoencoder, pipeline.text_encoder):
            encoder.to("cpu")  # training has better use for the memory
        return prompt_grid(images, s.prompts)

    def write(self, grid: Image, path: Path, trainer: L.Trainer) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "wb") as file:
            grid.save(file, "png")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(grid), trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("samples", [grid], step=trainer.global_step)
