"""What a run tells while it trains: how well it learns, how fast it goes, and what it has cost."""

import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor

from microdit.cost.budget import StepCosts
from microdit.cost.flops import kept_tokens
from microdit.cost.peak import matmul_flops_per_second
from microdit.distributed.hardware import TrainerSettings, peak_dtype
from microdit.distributed.sharding import summed
from microdit.objectives.objective import LossTerms, Objective
from microdit.training.data import LatentData
from microdit.training.module import DenoisingTask

WINDOW_BATCHES = 50
NOISE_QUARTILES = (-0.6745, 0.0, 0.6745)  # of the standard normal
GIBIBYTE = 2**30


class Telemetry(L.Callback):
    """Logs each `hardware.log_every_n_steps`-th step; `latest` holds the newest value of everything that was logged.

    `seconds` is wall-clock time from the first step, with validation, pictures and checkpoints, over all resumes; start
    it with what a run that was killed had logged, and `latest` with what the steps logged that it does not repeat. Loss
    and gradient norm are those of the step, over all ranks. `sources_of` gives the images of each source among the
    first so many.
    """

    def __init__(
        self,
        costs: StepCosts,
        hardware: TrainerSettings,
        sources_of: Callable[[int], dict[str, int]],
        seconds: float = 0.0,
        latest: dict[str, float] | None = None,
    ):
        self.costs, self.hardware, self.sources_of = costs, hardware, sources_of
        self.seconds = seconds
        self.latest = latest or {}
        self.flops = self.step = 0
        self.last_end = self.batch_started = self.busy = self.waited_before = 0.0
        self.replaced: Tensor | int = 0  # samples of this rank that stand in for broken ones
        self.ends: deque[tuple[float, float]] = deque(maxlen=WINDOW_BATCHES + 1)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.hardware.peak_tflops is None:
            self.peak_flops = matmul_flops_per_second(pl_module.device, peak_dtype(self.hardware.precision))
        else:
            self.peak_flops = self.hardware.peak_tflops * 1e12
        self.ends.append((self.busy, self.waited_before))
        self.last_end = time.monotonic()
        self.step = trainer.global_step
        self.flops = self.costs.after(self.step, trainer.max_steps)
        self.micro_batches = trainer.accumulate_grad_batches
        self.terms: deque[LossTerms] = deque(maxlen=self.micro_batches)  # of the newest step

    def on_train_batch_start(self, *args: Any) -> None:
        self.batch_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DenoisingTask)
        self.replaced = self.replaced + batch["replaced"].sum()  # stays a tensor: nothing waits for the device
        now, waited = time.monotonic(), self.waited(trainer)
        self.busy += now - self.batch_started + waited - self.waited_before
        self.seconds += now - self.last_end
        self.last_end, self.waited_before = now, waited
        self.ends.append((self.busy, waited))
        self.terms.append(outputs["terms"])
        if trainer.global_step == self.step:
            return  # in the middle of an accumulated step
        self.step = trainer.global_step
        progress = (self.step - 1) / trainer.max_steps
        self.flops += self.costs.global_batch_size * self.costs.at(progress)
        if self.step % self.hardware.log_every_n_steps == 0 or self.step == trainer.max_steps:
            losses = reduced_losses(self.terms, pl_module.objective, trainer.world_size)
            self.tell(trainer, losses | self.measured(trainer, pl_module, progress))

    def tell(self, trainer: L.Trainer, metrics: dict[str, float]) -> None:
        """Logs numbers of the step that was just made."""
        self.latest |= metrics
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step - 1)

    def measured(self, trainer: L.Trainer, task: DenoisingTask, progress: float) -> dict[str, float]:
        speed = self.images_per_second
        achieved = speed * self.costs.at(progress)
        images = self.step * self.costs.global_batch_size
        return {
            "train/gradient_norm": float(task.gradient_norm),
            "train/learning_rate": task.learning_rate,
            "train/skipped_steps": int(task.skipped_steps),
            "train/patches_kept": kept_tokens(task.network, task.mask_ratio.ratio(progress))[0],
            "train/images_per_second": speed,
            "train/mfu": achieved / (self.hardware.world_size * self.peak_flops),
            "train/data_wait_share": self.data_wait_share,
            "train/peak_memory_gib": peak_memory_gib(task.device),
            "train/flops": self.flops,
            "train/seconds": self.seconds,
            "train/dollars": self.dollars,
            "data/replaced": float(summed(torch.as_tensor(self.replaced, device=task.device).clone())),
            **{f"data/images/{name}": number for name, number in self.sources_of(images).items()},
        }

    @property
    def images_per_second(self) -> float:
        """Over the last batches, with the wait for data; validation, pictures and checkpoints do not count."""
        if len(self.ends) < 2:
            return 0.0
        images = (len(self.ends) - 1) * self.costs.global_batch_size / self.micro_batches
        return images / max(self.ends[-1][0] - self.ends[0][0], 1e-9)

    @property
    def data_wait_share(self) -> float:
        """The share of the time of the last batches in which this rank waited for data."""
        if len(self.ends) < 2:
            return 0.0
        busy, waited = (last - first for first, last in zip(self.ends[0], self.ends[-1], strict=True))
        return waited / max(busy, 1e-9)

    @property
    def dollars(self) -> float:
        return self.seconds / 3600 * self.hardware.world_size * self.hardware.dollars_per_device_hour

    def waited(self, trainer: L.Trainer) -> float:
        data = trainer.datamodule  # type: ignore[attr-defined]
        return data.watched.seconds if isinstance(data, LatentData) and data.watched is not None else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "replaced": int(self.replaced)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds = max(self.seconds, state_dict.get("seconds", 0.0))
        self.replaced = state_dict.get("replaced", 0)


def reduced_losses(micro_batches: Sequence[LossTerms], objective: Objective, world_size: int) -> dict[str, float]:
    """A step's loss over all micro-batches and ranks, and the denoising part of it by quarters of the noise levels.

    A quarter in which the step has no sample is left out, as is what is learned beside denoising where nothing is.
    """
    loss = torch.stack([terms.loss for terms in micro_batches]).mean()
    per_sample = torch.cat([terms.per_sample for terms in micro_batches]).float()
    level = objective.standard_level(torch.cat([terms.sigma for terms in micro_batches]))
    quarter = torch.bucketize(level, torch.tensor(NOISE_QUARTILES, device=level.device))
    sums = torch.zeros(4, device=level.device).index_add(0, quarter, per_sample)
    counts = torch.bincount(quarter, minlength=4).to(sums)
    extra = torch.cat([terms.extra for terms in micro_batches]).float().mean()
    values = summed(torch.cat([loss[None], sums, counts, extra[None]])).tolist()
    by_noise = {
        f"train/loss_noise_q{q}": total / count
        for q, total, count in zip((1, 2, 3, 4), values[1:5], values[5:9], strict=True)
        if count
    }
    beside = {"train/loss_extra": values[9] / world_size} if values[9] else {}
    return {"train/loss": values[0] / world_size, **by_noise, **beside}


def peak_memory_gib(device: torch.device) -> float:
    """The most this process has held so far: on its GPU, or in all on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIBIBYTE
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kibibytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIBIBYTE
