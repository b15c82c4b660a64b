"""What a run tells before it starts and after it ends."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from microdit.build import places_in
from microdit.distributed.hardware import divide_batch
from microdit.evaluation.metric import Look
from microdit.pipeline import objective_of
from microdit.runs.folder import SAMPLES
from microdit.training.callbacks.progress import clock
from microdit.training.settings import TrainingSettings


def show_summary(
    console: Console,
    settings: TrainingSettings,
    cost: dict[str, Any],
    max_steps: int,
    samples: int,
    resumed_from: Path | None,
) -> None:
    """What is about to happen, before it happens."""
    stage, hardware = settings.resolution_stage, settings.trainer
    kept, patches = cost["patches_kept"], cost["patches"]
    table = Table(show_header=False, box=None, title="this run", title_justify="left")
    rows = {
        "network": f"{cost['parameters'] / 1e6:.2f} M parameters, {settings.choices.get('model', '')}",
        "masking": f"{settings.choices.get('masking', '')}: the backbone sees {kept} of {patches} patches",
        "compute": f"{cost['flops_per_image'] / 1e9:.3g} GFLOP an image, {cost['total_flops']:.3g} FLOP in all",
        "data": f"{samples:,} images, {settings.choices.get('data_mix', '')}, {stage.resolution_px} px",
        "steps": f"{max_steps:,} of {stage.global_batch_size} images, {hardware.precision} on {device_name()}",
        "results": str(settings.output),
    }
    if hardware.world_size > 1:
        division = divide_batch(stage.global_batch_size, hardware)
        rows["devices"] = (
            f"{hardware.nodes} x {hardware.devices}, {hardware.strategy}; each computes {division.micro_batches} x "
            f"{division.device_batch_size} images a step"
        )
    looks = {name: metric for name, metric in settings.metrics.items() if isinstance(metric, Look)}
    if settings.metrics:
        measured = settings.config["metrics"].items()
        rows["at the end"] = "; ".join(
            name if name in looks else metric_in_words(name, each) for name, each in measured
        )
    if looks:
        rows["while it trains"] = "; ".join(
            f"every {look.every_n_steps:,} steps {metric_in_words(name, look.metric, 'metric')}"
            for name, look in looks.items()
        )
    if settings.init_from is not None:
        rows["starts from"] = f"{settings.init_weights} weights of {settings.init_from}"
        learned, asked = objective_of(settings.init_from), settings.objective["_target_"]
        if learned != asked:
            names = [name.rsplit(".", 1)[-1] for name in (learned, asked)]
            rows["starts from"] += f", which learned {names[0]} and begins anew with {names[1]}"
    if resumed_from is not None:
        rows["resumed"] = f"from {resumed_from}"
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table, highlight=False)


def metric_in_words(name: str, given: Mapping[str, Any], where: str = "") -> str:
    """A metric with how many pictures it counts, and what it reads: that should be there before days of training."""
    counted = {key: value for key, value in given.items() if value is not None and (key == "count" or "_per_" in key)}
    counts = [f"{key}={value:,}" for key, value in counted.items()]
    return ", ".join([name, *counts, *(f"reads {key}={text}" for key, text, _ in places_in(given, where=where))])


def show_result(console: Console, record: dict[str, Any], run: Path) -> None:
    """The closing table: what came out, and where it is."""
    table = Table(title=f"{record['status']} after {record['steps']} steps", title_justify="left")
    table.add_column("what")
    table.add_column("value", justify="right")
    measured = [name for name in record if "/" in name and not name.startswith(("train/", "data/", "choice/"))]
    for name in ["train/loss", *sorted(measured), "train/images_per_second", "train/mfu"]:
        if name in record:  # a run that was finished before it was resumed trained no step
            table.add_row(name, f"{record[name]:.4g}")
    table.add_row("images seen", f"{record['images']:,}")
    table.add_row("training time", clock(record["seconds"]))
    table.add_row("FLOP spent", f"{record['total_flops']:.3g}")
    if record["dollars"]:
        table.add_row("dollars", f"{record['dollars']:.2f}")
    console.print(table, highlight=False)
    pictures = sorted((run / SAMPLES).glob("step_*.png"))
    if pictures:
        console.print(f"newest sample grid: {pictures[-1]}", highlight=False, soft_wrap=True)
    console.print(f"everything else:    {run}", highlight=False, soft_wrap=True)


def device_name() -> str:
    """The accelerator this process computes on, or the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
