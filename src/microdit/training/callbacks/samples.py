"""Pictures during training: the same prompts and the same noise each time, so that one sees learning."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL.Image import Image

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

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        step = trainer.global_step
        due = step % self.settings.every_n_steps == 0 or step == trainer.max_steps
        if due and step > 0 and step != self.drawn_step and self.settings.prompts:
            self.drawn_step = step
            assert isinstance(pl_module, DenoisingTask)
            network = pl_module.whole_network()
            if trainer.is_global_zero:
                assert network is not None
                self.draw(trainer, network, pl_module.device)
            trainer.strategy.barrier()

    def draw(self, trainer: L.Trainer, network: DiT, device: torch.device) -> None:
        s = self.settings
        pipeline = self.pipeline.with_network(network).to(device)
        images = pipeline.generate(
            s.prompts,
            num_inference_steps=s.num_inference_steps,
            guidance_scale=s.guidance_scale,
            guidance_interval=s.guidance_interval,
            sampler=s.sampler,
            temperature=s.temperature,
            seed=s.seed,
        )
        for encoder in (pipeline.autoencoder, pipeline.text_encoder):
            encoder.to("cpu")  # training has better use for the memory
        grid = prompt_grid(images, s.prompts)
        path = sample_path(self.run, trainer.global_step)
        try:
            self.write(grid, path, trainer)
        except OSError as error:
            log.warning("%s cannot be written (%s); training goes on", path, error)

    def write(self, grid: Image, path: Path, trainer: L.Trainer) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        grid.save(path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("samples", np.asarray(grid), trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("samples", [grid], step=trainer.global_step)
