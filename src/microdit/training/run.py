"""One run of training, from settings to result.json."""

import json
import logging
import subprocess
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import Logger
from rich.console import Console

from microdit.analysis.cost import kept_tokens, training_flops_per_image
from microdit.build import SettingsError, build
from microdit.checkpoints import latest_checkpoint, read_checkpoint
from microdit.data.embedded import EmbeddedShapes, ensure_shapes
from microdit.data.encoding import Encoders
from microdit.data.opening import open_mix
from microdit.data.plan import Recipe
from microdit.data.progress import progress_bar
from microdit.data.stream import LatentStream
from microdit.pipeline import LatentDiffusion, build_pipeline, write_settings
from microdit.training.checkpointing import StepCheckpoints
from microdit.training.data import LatentData
from microdit.training.metrics_file import MetricsFile
from microdit.training.module import DenoisingTask
from microdit.training.progress import TrainingProgress
from microdit.training.samples import SampleGrids
from microdit.training.settings import TrainingSettings, bind
from microdit.training.summary import device_name, show_summary

RESULT_FILE = "result.json"


def train(settings: TrainingSettings, console: Console, resume: bool = False) -> dict[str, Any]:
    """Trains, evaluates and returns the flat record that is also written to the run's result.json.

    With `resume` it continues from the run folder's newest checkpoint. Raises SettingsError, DataMissingError,
    CheckpointError or NonFiniteLossError, each of which says what to do.
    """
    quieten_libraries()
    L.seed_everything(settings.seed, verbose=False)
    run, stage, hardware = settings.output, settings.resolution_stage, settings.trainer
    pipeline = build_pipeline(network_settings(settings))
    train_stream, validation_stream = open_data(settings, pipeline)

    checkpoint = latest_checkpoint(run) if resume else None
    task = DenoisingTask(
        pipeline.dit,
        sigma_data=pipeline.sigma_data,
        mask_ratio=settings.mask_ratio,
        stage=stage,
        optimizer=settings.optimizer,
        max_steps=hardware.max_steps,
    )
    metrics_file = MetricsFile(run / "metrics.csv")
    if checkpoint is not None:
        metrics_file.forget_after(int(read_checkpoint(checkpoint)["global_step"]) - 1)
    progress = TrainingProgress(console, stage.global_batch_size, accumulation(settings))
    cost = run_cost(settings, pipeline)
    if hardware.compile:
        pipeline.dit.compile_blocks()
    trainer = L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_steps=hardware.max_steps,
        logger=[metrics_file, *(build(logger, Logger, save_dir=str(run)) for logger in settings.loggers)],
        callbacks=[
            progress,
            SampleGrids(run, settings.samples, pipeline.autoencoder, pipeline.text_encoder),
            StepCheckpoints(run, hardware.checkpoint_every_n_steps, hardware.keep_checkpoints),
        ],
        log_every_n_steps=hardware.log_every_n_steps,
        val_check_interval=hardware.validate_every_n_steps * accumulation(settings),
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accumulate_grad_batches=accumulation(settings),
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=run,
    )
    data = LatentData(
        train_stream,
        validation_stream,
        seed=settings.seed,
        patch_size=pipeline.dit.patch_size,
        caption_dropout=stage.caption_dropout,
        global_batch_size=stage.global_batch_size,
        device_batch_size=hardware.device_batch_size,
        validation_batch_size=hardware.validation_batch_size,
        num_workers=settings.reading.num_workers,
    )
    if trainer.is_global_zero:
        run.mkdir(parents=True, exist_ok=True)
        write_settings(network_settings(settings), run)
        show_summary(console, settings, cost, len(train_stream), checkpoint)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)

    record = {
        "status": "finished" if trainer.global_step >= hardware.max_steps else "interrupted",
        "steps": trainer.global_step,
        "images": trainer.global_step * stage.global_batch_size,
        "seconds": round(progress.seconds, 2),
        **{name: float(value) for name, value in trainer.callback_metrics.items() if "/" in name},
        **cost,
        "total_flops": cost["flops_per_image"] * trainer.global_step * stage.global_batch_size,
        "dollars": round(progress.seconds / 3600 * hardware.devices * hardware.dollars_per_device_hour, 4),
        "seed": settings.seed,
        "device": device_name(),
        "commit": commit(),
        **{f"choice/{group}": choice for group, choice in settings.choices.items()},
    }
    if trainer.is_global_zero:
        sampler = LatentDiffusion(task.best_network, pipeline.autoencoder, pipeline.text_encoder)
        record |= evaluate(sampler, settings, console)
        (run / RESULT_FILE).write_text(json.dumps(record, indent=2) + "\n")
    return record


def network_settings(settings: TrainingSettings) -> dict[str, Any]:
    """Pipeline settings with the network's input size, which the stage and the autoencoder decide together."""
    pipeline = settings.pipeline
    downscale = pipeline["autoencoder"].get("downscale", 1)
    size, remainder = divmod(settings.resolution_stage.resolution_px, downscale)
    if remainder:
        raise ValueError(
            f"{settings.resolution_stage.resolution_px} px does not divide by the autoencoder's downscale {downscale}"
        )
    return {**pipeline, "model": {**pipeline["model"], "input_size": size}}


def open_data(settings: TrainingSettings, pipeline: LatentDiffusion) -> tuple[LatentStream, LatentStream]:
    """Streams for training and validation; the embedded shapes are made first if the mix has them and they are missing.

    Raises DataMissingError naming the command that makes what is missing, SettingsError when the data was encoded at
    another width or length than the run's encoders have.
    """
    names = settings.choices["autoencoder"], settings.choices["text_encoder"]
    resolution_px, mix, reading = settings.resolution_stage.resolution_px, settings.data_mix, settings.reading
    if mix.embedded is not None:
        parts = settings.autoencoder, settings.text_encoder
        encoders = Encoders(pipeline.autoencoder, pipeline.text_encoder, *names, "cpu", *parts)
        with progress_bar("shapes") as report:
            ensure_shapes(
                settings.data_root,
                bind(EmbeddedShapes, mix.embedded, "data_mix.embedded"),
                encoders,
                Recipe([resolution_px]),
                report,
            )

    def opened(sources: list[dict[str, Any]], shuffle: bool) -> LatentStream:
        return open_mix(
            sources,
            resolution_px=resolution_px,
            seed=settings.seed,
            autoencoder=names[0],
            text_encoder=names[1],
            shuffle=shuffle,
            on_corrupt=reading.on_corrupt,  # type: ignore[arg-type]
            max_corrupt_share=reading.max_corrupt_share,
            cache_folder=reading.cache_folder,
            cache_gigabytes=reading.cache_gigabytes,
            pin_memory=settings.trainer.accelerator == "gpu",
        )

    train_stream, validation_stream = opened(mix.sources, True), opened(mix.validation, False)
    expected = {
        "latents": (train_stream.latent_shape, pipeline.latent_shape()),
        "captions": (train_stream.caption_shape, (pipeline.text_encoder.length, pipeline.text_encoder.channels)),
    }
    for what, (found, wanted) in expected.items():
        if tuple(found) != wanted:
            raise SettingsError(
                f"the {what} of this data_mix have shape {tuple(found)}, the run's encoders give {wanted}: "
                f"choose the autoencoder and text_encoder the data was prepared with, or prepare it anew"
            )
    return train_stream, validation_stream


def accumulation(settings: TrainingSettings) -> int:
    """Micro-batches an optimizer step: what is left of the global batch after devices and device batch."""
    stage, hardware = settings.resolution_stage, settings.trainer
    share = stage.global_batch_size // hardware.devices
    return max(1, share // (hardware.device_batch_size or share))


def run_cost(settings: TrainingSettings, pipeline: LatentDiffusion) -> dict[str, Any]:
    """Parameters, tokens kept and FLOPs an image (at the schedule's first mask ratio)."""
    ratio = settings.mask_ratio.ratio(0.0)
    kept, patches = kept_tokens(pipeline.dit, ratio)
    return {
        "parameters": sum(p.numel() for p in pipeline.dit.parameters()),
        "patches": patches,
        "patches_kept": kept,
        "flops_per_image": training_flops_per_image(pipeline.dit, ratio, pipeline.text_encoder.length),
    }


def evaluate(pipeline: LatentDiffusion, settings: TrainingSettings, console: Console) -> dict[str, float]:
    """Every metric's numbers; what each one looked at is kept as RUN/evaluation/METRIC.png."""
    numbers: dict[str, float] = {}
    for name, metric in settings.metrics.items():
        with progress_bar(f"evaluating {name}") as report:
            values, picture = metric.evaluate(pipeline, lambda d, t: report(d, t, "network evaluations"))
        numbers |= values
        if picture is not None:
            path = settings.output / "evaluation" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            console.print(f"{name}: what was judged is in {path}", highlight=False)
    return numbers


def commit() -> str:
    """The commit of the source tree, with a plus where it has changes; "unknown" outside a git checkout."""
    here = Path(__file__).parent
    try:
        asked = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(asked, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def quieten_libraries() -> None:
    """Lightning's tips and advice about worker counts say nothing about this run."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*litlogger.*|.*litmodels.*")
