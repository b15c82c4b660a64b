"""One run of training, from settings to result.json."""

import logging
import os
import secrets
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import timedelta
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from rich.console import Console

from microdit.build import SettingsError, build
from microdit.checkpoints.starting import initial_optimizer, load_initial_weights
from microdit.cost.budget import step_costs, total_cost
from microdit.cost.flops import on_meta
from microdit.cost.variation import inputs_of, varied_model
from microdit.distributed.hardware import check_hardware, divide_batch, is_rank_zero, trainer_options
from microdit.encoders.protocols import Autoencoder
from microdit.evaluation.metric import LOOK, Look, measure
from microdit.evaluation.sharing import all_ranks
from microdit.evaluation.subject import Subject
from microdit.kernels.compile import compile_network
from microdit.kernels.cpu.host_memory import keep_freed_memory
from microdit.kernels.gpu.device_memory import let_segments_grow
from microdit.pipeline import LatentDiffusion, build_pipeline, makes_a_network, write_settings
from microdit.representation.alignment import alignment_costs, make_alignment
from microdit.runs.differences import flat
from microdit.runs.folder import EVALUATION, METRICS_FILE, RESULT_FILE, checkpoint_step, read_config, size_on_disk
from microdit.runs.metrics import lost_end
from microdit.runs.record import write_record
from microdit.training.callbacks.checkpoints import StepCheckpoints
from microdit.training.callbacks.loggers import MetricsFile, refuse_settings_beside
from microdit.training.callbacks.looks import Looks
from microdit.training.callbacks.progress import TrainingProgress
from microdit.training.callbacks.samples import SampleGrids
from microdit.training.callbacks.stopping import StopWhenAsked
from microdit.training.callbacks.telemetry import Telemetry
from microdit.training.callbacks.validation import Validation
from microdit.training.data import LatentData, keep_data, open_data
from microdit.training.fitting import fitted, memory_held, memory_of_this_device
from microdit.training.module import DenoisingTask
from microdit.training.settings import TrainingSettings
from microdit.training.summary import device_name, show_summary

MOST_OF_MEMORY = 2  # times: a count may be off, and a machine keeps some on its disk


def train(settings: TrainingSettings, console: Console, checkpoint: Path | None = None) -> dict[str, Any]:
    """Trains, evaluates and returns the flat record that is also written to the run's result.json.

    It goes on from `checkpoint` if there is one. Each of several ranks does its part; rank zero writes. Raises
    SettingsError, DataMissingError, CheckpointError, NonFiniteLossError or PreemptedError, each of which says what to
    do.
    """
    quieten_libraries()
    run, stage, hardware = settings.output, settings.resolution_stage, settings.trainer
    check_hardware(hardware)
    if hardware.accelerator == "cpu":
        keep_freed_memory()
    elif not hardware.graphed:
        let_segments_grow()
    L.seed_everything(settings.seed, verbose=False)
    network = network_settings(settings)
    pipeline = build_pipeline(network)
    hardware = fitted(settings, pipeline, memory_of_this_device(hardware))
    settings = replace(settings, trainer=hardware)
    division = divide_batch(stage.global_batch_size, hardware)
    ask_for_what_comes_later(settings, pipeline, console)
    train_stream, validation_stream = open_data(settings, pipeline)
    if is_rank_zero():
        keep_data(run, {"train": train_stream, "validation": validation_stream}, resumed=checkpoint is not None)
    alignment = make_alignment(settings.representation, pipeline.dit)
    beside = alignment_costs(alignment, on_meta(pipeline.dit), settings.mask_ratio, pipeline.text_encoder.length)
    shares = train_stream.shares if len(train_stream.shares) > 1 else None
    if shares is not None and hardware.cuda_graphs is None:  # a graph is of one shape, and recorded anew for another
        hardware = replace(hardware, cuda_graphs=False)
        settings = replace(settings, trainer=hardware)
    costs = step_costs(pipeline, settings.mask_ratio, stage.global_batch_size, beside, shares)
    max_steps = costs.steps(hardware.max_steps, hardware.max_flops)
    optimizer_state = None
    if checkpoint is None and settings.init_from is not None:
        load_initial_weights(pipeline.dit, settings.init_from, settings.init_weights)
        optimizer_state = initial_optimizer(settings.init_from) if settings.init_optimizer else None
    if hardware.activation_checkpointing:
        pipeline.dit.checkpoint_activations()
    if hardware.accelerator == "gpu" and hardware.halved:
        torch.set_float32_matmul_precision("high")  # of the few products that are not in bfloat16
    if hardware.compiles:
        compile_network(pipeline.dit, hardware.accelerator)
    task = DenoisingTask(pipeline.dit, pipeline.objective, settings, max_steps, optimizer_state, alignment)
    if task.network is not pipeline.dit:
        pipeline.dit = on_meta(pipeline.dit)  # what is counted on it needs no weights, which are the task's alone
    data = LatentData(train_stream, validation_stream, settings, pipeline.dit.patch_size, pipeline.dit.quality_dropout)
    metrics_file = MetricsFile(run / METRICS_FILE)
    seconds = metrics_file.newest().get("train/seconds", 0.0)
    if checkpoint is not None and is_rank_zero():
        lost = lost_end(run / METRICS_FILE, checkpoint_step(checkpoint), hardware.log_every_n_steps)
        if lost is not None:
            console.print(f"warning: {lost}", highlight=False)
    metrics_file.forget_after(-1 if checkpoint is None else checkpoint_step(checkpoint) - 1)
    validated = metrics_file.steps_with("validation/loss")
    looks = {name: metric for name, metric in settings.metrics.items() if isinstance(metric, Look)}
    looked = metrics_file.steps_with(f"{LOOK}/")
    telemetry = Telemetry(costs, hardware, train_stream.source_counts, seconds, metrics_file.newest())
    checkpoints = StepCheckpoints(settings, console)
    cost = total_cost(costs, max_steps, pipeline)
    if is_rank_zero():
        run.mkdir(parents=True, exist_ok=True)
        write_settings(network, run)
        show_summary(console, settings, cost, max_steps, len(train_stream), checkpoint)
    with loggers(settings) as chosen:
        trainer = L.Trainer(
            **trainer_options(hardware, static_graph=division.micro_batches == 1),
            max_steps=max_steps,
            logger=[metrics_file, *chosen],
            callbacks=[
                telemetry,
                TrainingProgress(console, telemetry),
                StopWhenAsked(checkpoints, timedelta(minutes=hardware.collective_timeout_minutes)),
                SampleGrids(run, settings.samples, pipeline),
                Looks(run, looks, pipeline, telemetry, looked),
                Validation(data, hardware.validate_every_n_steps, telemetry, validated),
                checkpoints,
            ],
            log_every_n_steps=hardware.log_every_n_steps,
            limit_val_batches=0,  # Validation comes before the checkpoint of its step, which Lightning's would not
            accumulate_grad_batches=division.micro_batches,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=run,
        )
        if is_rank_zero():
            (run / RESULT_FILE).unlink(missing_ok=True)  # an earlier end of this run is not its end any more
        try:
            trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as left:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from left
    trained = task.whole_network()

    record = {
        "status": "finished" if trainer.global_step >= max_steps else "interrupted",
        "steps": trainer.global_step,
        "images": trainer.global_step * stage.global_batch_size,
        "seconds": round(telemetry.seconds, 2),
        **cost,
        "total_flops": costs.after(trainer.global_step, max_steps),
        "dollars": round(telemetry.dollars, 4),
        "devices": hardware.world_size,
        "seed": settings.seed,
        "device": device_name(),
        "commit": commit(),
        **{f"choice/{group}": choice for group, choice in settings.choices.items()},
    }
    record = record | telemetry.latest | record  # whatever a column of metrics.csv is called
    record |= evaluate(pipeline.with_network(trained).to(trainer.strategy.root_device), settings, console)
    if is_rank_zero():
        write_record(run, record)
    return record


def ask_for_what_comes_later(settings: TrainingSettings, pipeline: LatentDiffusion, console: Console) -> None:
    """Before the first step, on rank zero: what metrics need (SettingsError where it is not there, instead of hours
    later), what sample grids need, and room for the checkpoints that are kept (a warning: training goes on without)."""
    if not is_rank_zero():
        return
    for name, metric in settings.metrics.items():
        try:
            metric.ask(pipeline)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            when = "while it trains" if isinstance(metric, Look) else "when training ends"
            raise SettingsError(
                f"metrics.{name} is measured {when}, and could not be: {error}. Or without: metrics=none"
            ) from error
    if settings.samples.prompts and not settings.metrics:
        try:
            pipeline.load_encoders()
        except (OSError, ValueError, RuntimeError, ImportError) as error:
            console.print(f"warning: there will be no sample grids: {error}", highlight=False)
    settings.output.mkdir(parents=True, exist_ok=True)
    copies = 4 if settings.resolution_stage.ema_decay is not None else 3  # weights, average, both moments at most
    one = copies * sum(parameter.nbytes for parameter in pipeline.dit.parameters())
    needed, free = (settings.trainer.keep_checkpoints + 1) * one, shutil.disk_usage(settings.output).free
    if free < needed:
        console.print(
            f"warning: the checkpoints that are kept take up to {needed / 1e9:.3g} GB, and {settings.output} has "
            f"{free / 1e9:.3g} GB free: make room, or lower trainer.keep_checkpoints",
            highlight=False,
        )


@contextmanager
def loggers(settings: TrainingSettings) -> Iterator[list[Logger]]:
    """The loggers of the run; in the end each Weights & Biases run is closed, or the next of a sweep would join it."""
    if any(str(logger.get("_target_")).endswith("WandbLogger") for logger in settings.loggers):
        refuse_settings_beside(Path.cwd())
    run = settings.output
    chosen = [build(one, Logger, save_dir=str(run), **same_run(one, run)) for one in settings.loggers]
    if is_rank_zero():
        for logger in chosen:
            ask_for_login(logger)
            if isinstance(logger, WandbLogger):
                logger.log_hyperparams(told_of(read_config(run)))
    try:
        yield chosen
    finally:
        if any(isinstance(logger, WandbLogger) for logger in chosen):
            import wandb

            wandb.finish()


def told_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """What Weights & Biases is told of a run: its settings and choices by dotted names, and the code's commit; not the
    groups that say where things lie and are sent, and no judge's address."""
    kept = {group: value for group, value in config.items() if group not in ("logger", "paths", "reading", "resume")}
    return {
        **{name: value for name, value in flat(kept) if name.rpartition(".")[2] != "address"},
        "commit": commit(),
    }


def same_run(logger: Mapping[str, Any], run: Path) -> dict[str, str]:
    """What lets Weights & Biases go on with the curves of a resumed run: the id of its first part, which is kept in the
    names of W&B's folders, where it was made for this very folder. Another's run names none of yours."""
    if not str(logger.get("_target_")).endswith(".WandbLogger") or logger.get("version"):
        return {}

    def of_this_folder(start: str) -> str:
        return start + blake2b(f"{start} {run.resolve()}".encode(), digest_size=6).hexdigest()

    kept = [part.name.rpartition("-")[2] for part in sorted((run / "wandb").glob("*run-*-*"))]
    own = [name for name in kept if name == of_this_folder(name[:8])]
    return {"version": own[0] if own else of_this_folder(secrets.token_hex(4))}


def ask_for_login(logger: Logger) -> None:
    """Raises SettingsError where Weights & Biases would ask for a key when nobody is there to give one."""
    if not isinstance(logger, WandbLogger) or logger._offline or os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb

    if wandb.api.api_key is None:
        raise SettingsError(
            "logger=wandb is online and there is no key: `wandb login`, or WANDB_API_KEY, or logger.wandb.offline=true"
        )


def check_network(settings: TrainingSettings, checkpoint: Path | None) -> None:
    """Raises SettingsError where the settings make no network that can be trained, where it is larger than the
    checkpoint to go on from, or where a step holds more than this machine has: by counting, nothing is allocated."""
    hardware = settings.trainer
    with makes_a_network():
        pipeline = build_pipeline(network_settings(settings), device="meta")
        needed = sum(tensor.nbytes for tensor in pipeline.dit.state_dict().values())
        if checkpoint is not None and needed > (there := size_on_disk(checkpoint)):
            raise SettingsError(
                f"these settings make a network of {needed:,} bytes, and {checkpoint} has {there:,}: it is of another "
                "network. Put back the settings that it was made with"
            )
        division = divide_batch(settings.resolution_stage.global_batch_size, hardware)
        if hardware.accelerator != "cpu":
            return
        held = memory_held(settings, pipeline, division.device_batch_size, division.micro_batches)
        total = hardware.devices * (held.total - (held.activations if hardware.activation_checkpointing else 0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if total > MOST_OF_MEMORY * memory:
        raise SettingsError(
            f"a step takes {total / 1e9:,.0f} GB, and this machine has {memory / 1e9:,.0f}: lower "
            "resolution_stage.global_batch_size or trainer.device_batch_size, or choose a smaller model"
        )


def network_settings(settings: TrainingSettings) -> dict[str, Any]:
    """What build_pipeline needs for the network that is meant: `model`, varied, at this stage's resolution.

    Raises SettingsError or ValueError where the variation makes no network.
    """
    stage, downscale = settings.resolution_stage, build(settings.autoencoder, Autoencoder).downscale
    size, remainder = divmod(stage.resolution_px, downscale)
    if remainder:
        raise ValueError(f"{stage.resolution_px} px does not divide by the autoencoder's downscale {downscale}")
    model = varied_model(
        settings.model,
        settings.moe,
        settings.masking,
        settings.mask_ratio.ratio(0.0),
        lambda: inputs_of(settings.autoencoder, settings.text_encoder, stage.resolution_px),
        settings.variation,
    )
    return {
        "model": {**model, **settings.moe, "pos_interp_scale": stage.pos_interp_scale, "input_size": size},
        "token_path": settings.masking,
        "objective": settings.objective,
        "sampling": asdict(settings.sampling),
        "autoencoder": settings.autoencoder,
        "text_encoder": settings.text_encoder,
    }


def evaluate(pipeline: LatentDiffusion, settings: TrainingSettings, console: Console) -> dict[str, float]:
    """Every metric's numbers, on every rank, each of which does its share; what each metric looked at is kept in
    RUN/evaluation."""

    def measured(name: str, numbers: dict[str, float], picture: Path | None) -> None:
        if picture is not None:
            console.print(f"{name}: what was judged is in {picture}", highlight=False)

    subject = Subject(pipeline, settings.output / EVALUATION, ranks=all_ranks())
    return measure(subject, settings.metrics, measured)


def commit() -> str:
    """The commit of the source tree, with a plus where it has changes; where the package is installed without one its
    version, and "unknown" where nothing tells."""
    here = Path(__file__).parents[3]
    if not (here / ".git").exists():  # a repository above it, such as one that a .venv lies in, is another project's
        try:
            return version("microdit")
        except PackageNotFoundError:
            return "unknown"
    try:
        # No program of a repository's own settings is started, whatever repository this folder may lie in.
        asked = ["git", "-c", "core.fsmonitor=false", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(asked, cwd=here, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def quieten_libraries() -> None:
    """Lightning's tips and advice about worker counts say nothing about this run."""
    for library in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(library).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*litlogger.*|.*litmodels.*")
    # Lightning asks torch in a way that torch is about to drop; nobody here can change that.
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    # The new name of this argument is unknown to the oldest torch that this project runs with.
    warnings.filterwarnings("ignore", message=".*`broadcast_buffers` is deprecated.*")
