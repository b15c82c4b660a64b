"""What `train.py` does: from a composed configuration to a finished run, or a chain of stages; new, or gone on with."""

import logging
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console

from microdit.commands.compose import Stage, composed, composed_stages, is_chain, output_folder, told_in_a_sweep
from microdit.commands.messages import console, tell_places
from microdit.commands.plan import show_plan
from microdit.commands.resumed import WANDB, check_saved, read_elsewhere
from microdit.cost.peak import matmul_flops_per_second
from microdit.distributed.hardware import check_hardware, divide_batch, is_rank, is_rank_zero, peak_dtype
from microdit.distributed.ranks import REQUEUE_CODE, PreemptedError, train_in_ranks
from microdit.files import only_writer, read_json, write_yaml
from microdit.kinds import Place, SettingsError, told_with
from microdit.runs.differences import differences, settings_of
from microdit.runs.folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    RESULT_FILE,
    STAGES_FILE,
    checkpoint_step,
    checkpoints_of,
    is_checkpoint,
    read_config,
    refuse_links,
    write_config,
)
from microdit.runs.record import RECORD_CURE, finished_record, write_record
from microdit.training.fitting import memory_of_this_device
from microdit.training.run import check_network, train
from microdit.training.settings import training_settings
from microdit.training.summary import show_result

log = logging.getLogger(__name__)


def train_command(config: DictConfig) -> None:
    """Trains what the command line asks for: one run, or the stages of a chain."""
    with told_in_a_sweep(config, write_failure):
        if is_chain(config):
            stages, expected_mfu = composed_stages(config)
            tell_what_is_read(config, [stage.config for stage in stages], STAGES_FILE)
            run_chain(stages, output_folder(), expected_mfu, console)
        else:
            told, choices = composed(config)
            tell_what_is_read(config, [told], CONFIG_FILE)
            launch_unless_finished(told, choices, output_folder(), console)


def tell_what_is_read(config: DictConfig, told: Sequence[dict[str, Any]], file: str) -> None:
    """Of a resumed run: what its file says is read from elsewhere, before it is."""
    if config.resume is not None and is_rank_zero():
        folder = output_folder()
        places = [place for settings in told for place in (*read_elsewhere(settings, folder), *sent_to(settings))]
        tell_places(places, folder / file)


def sent_to(config: Mapping[str, Any]) -> list[tuple[str, str, Place]]:
    """The projects of Weights & Biases that a run's numbers and pictures are sent to."""
    online = {
        name: one for name, one in config["logger"].items() if one["_target_"] == WANDB and not one.get("offline")
    }
    return [(f"logger.{name}.project", one["project"], Place()) for name, one in online.items() if one.get("project")]


def launch_unless_finished(
    config: dict[str, Any], choices: dict[str, str], folder: Path, console: Console
) -> dict[str, Any]:
    """Runs training in `folder` as `launch` does, unless a run with the same settings has finished there: then its
    record is returned, and a line says so. A run that resume= names always goes on.

    Raises SettingsError where the folder holds a run with other settings, which is left as it is: its checkpoints
    would be gone on with under the wrong name. InUseError where another process trains there now.
    """
    refuse_links(folder)
    with only_trainer(folder):
        if config["resume"] is not None or not (folder / CONFIG_FILE).is_file():
            return launch(config, choices, folder, console)
        was = settings_of(read_config(folder))
        now = settings_of({**config, "choices": choices})
        record = finished_record(folder)
        if record is not None and was == now:
            if is_rank_zero():
                console.print(
                    f"skipped, finished before with the same settings: {folder}", highlight=False, soft_wrap=True
                )
            return record
        # Other metrics judge the same network: the run is evaluated again.
        changed = [one for one in differences(was, now) if not one.startswith("metrics.")]
        if changed and (record is not None or checkpoints_of(folder)):
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise SettingsError(
                f"{folder} holds a run with other settings ({'; '.join(changed[:3])}{more}): choose another folder, "
                f"or go on with that run as it was started, resume={folder}"
            )
        return launch(config, choices, folder, console)


def only_trainer(folder: Path) -> AbstractContextManager[None]:
    """Nobody else trains in `folder` while the block runs; of several ranks the first sees to that. InUseError where
    somebody does."""
    return only_writer(folder, CHECKPOINTS) if is_rank_zero() else nullcontext()


def launch(config: dict[str, Any], choices: dict[str, str], folder: Path, console: Console) -> dict[str, Any]:
    """Runs training in `folder`, on all its devices, and shows what came out; returns the record of result.json.

    The configuration is written first, so that the run can be resumed from the moment it exists. A folder that has
    checkpoints is gone on with: a scheduler started the same job again. A run that fails leaves a result.json that
    says so, then raises; one that was asked to stop ends the process with REQUEUE_CODE.
    """
    try:
        settings = training_settings(config, folder, choices)
        from_a_file = nullcontext() if config["resume"] is None else told_with(folder / CONFIG_FILE)
        with from_a_file:
            divide_batch(settings.resolution_stage.global_batch_size, settings.trainer)
            check_hardware(settings.trainer)
            check_network(settings, newest_or_named(config["resume"], folder))
        checkpoint = checkpoint_to_resume(config["resume"], folder)
        if checkpoint is not None:
            check_it_fits(config, folder)
    except Exception as error:
        if config["resume"] is None:  # a mistake in how a run is resumed does not make that run a failed one
            write_failure(error, config, choices, folder)
        raise
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_rank_zero() or not is_rank():  # every machine's ranks read it
            write_config(folder, config, choices)
        if settings.trainer.world_size > 1 and not is_rank():
            train_in_ranks(folder.resolve(), settings.trainer, checkpoint, console)
            record = read_json(folder / RESULT_FILE, RECORD_CURE) if is_rank_zero() else {}
        else:
            record = train(settings, console, checkpoint)
    except PreemptedError as error:
        if is_rank_zero():
            console.print(str(error), highlight=False)
        pass_on(error.signal_number)
        raise SystemExit(REQUEUE_CODE) from error
    except Exception as error:
        write_failure(error, config, choices, folder)
        raise
    if is_rank_zero():
        show_result(console, record, folder)
    return record


def check_it_fits(config: dict[str, Any], folder: Path) -> None:
    """Raises SettingsError where a value was changed without which the run's checkpoints cannot be loaded."""
    if not (folder / CONFIG_FILE).is_file():
        return
    before = read_config(folder)
    check_saved(before, folder / CONFIG_FILE)
    held = {
        "resolution_stage.ema_decay": lambda c: c["resolution_stage"]["ema_decay"] is not None,
        "optimizer._target_": lambda c: c["optimizer"]["_target_"],
        "optimizer.kinds": lambda c: sorted(c["optimizer"].get("kinds") or {}),
    }
    for name, of in held.items():
        if of(before) != of(config):
            group, _, key = name.partition(".")
            raise SettingsError(
                f"{name} is {before[group].get(key)} in {folder}, it cannot become {config[group].get(key)}: its "
                f"checkpoints hold the state of that. Resume without that change, or start a new run from its weights: "
                f"init_from={folder}"
            )


def write_failure(error: Exception, config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """A result.json that says why there is no other. Where there is no room for it, `error` itself is what matters."""
    if not is_rank_zero():
        return
    failure = {"status": "failed", "error": f"{type(error).__name__}: {error}", "seed": config["seed"]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder, failure | {f"choice/{group}": choice for group, choice in choices.items()})
    except OSError as unwritten:
        log.warning("%s cannot be written (%s)", folder / RESULT_FILE, unwritten)


def checkpoint_to_resume(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from: the one that `resume` names, else the newest in the folder; None if it has none.

    Those after a named one are set aside under another name: they are of a course that is not followed any more.
    """
    chosen = newest_or_named(resume, folder)
    if chosen is not None and resume is not None and chosen == Path(resume) and is_rank_zero():
        for later in checkpoints_of(folder):
            if checkpoint_step(later) > checkpoint_step(chosen):
                later.rename(later.with_name(f"set_aside_{later.name}"))
    return chosen


def newest_or_named(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint that `resume` names, else the newest in the folder; None if it has none."""
    found = checkpoints_of(folder)
    if resume is not None and is_checkpoint(Path(resume)):
        return Path(resume)
    return found[-1] if found else None


def pass_on(signal_number: int | None) -> None:
    """Gives a signal to the handler that was there before training's, if any: submitit's puts the job back in line."""
    if signal_number is not None and callable(signal.getsignal(signal_number)):
        os.kill(os.getpid(), signal_number)


def run_chain(stages: Sequence[Stage], folder: Path, expected_mfu: float, console: Console) -> list[dict[str, Any]]:
    """Prints the plan and its cost, then runs the stages in folders below `folder`; returns the record of each.

    A stage that has finished is not run again, and one that has begun goes on. Raises what a run raises; the chain
    then goes on with resume=FOLDER.
    """
    refuse_links(folder)
    runs = [folder / f"{number}-{stage.name}" for number, stage in enumerate(stages, start=1)]
    later = [s._replace(config={**s.config, "init_from": str(run)}) for s, run in zip(stages[1:], runs, strict=False)]
    stages = [stages[0], *later]
    for stage in stages:
        training_settings(stage.config, folder, stage.choices)  # any mistake shows before anything runs
    if is_rank_zero():
        folder.mkdir(parents=True, exist_ok=True)
        write_stages(stages, expected_mfu, folder)
        composed = [(stage.config, stage.choices) for stage in stages]
        show_plan(composed, planned_hardware(stages[0], expected_mfu), console)
    records = []
    for number, (stage, run) in enumerate(zip(stages, runs, strict=True), start=1):
        record = finished_record(run)
        told = "finished before" if record else f"in {run}"
        if is_rank_zero():
            console.print(f"\nstage {number} of {len(stages)}, {stage.name}: {told}", highlight=False)
        with only_trainer(run):
            records.append(record or launch({**stage.config, "resume": None}, stage.choices, run, console))
    return records


def planned_hardware(stage: Stage, expected_mfu: float) -> dict[str, Any]:
    """What the plan counts with: the run's devices at the configured peak, or at the one this machine shows now."""
    hardware = training_settings(stage.config, Path(), stage.choices).trainer
    peak = hardware.peak_tflops
    if peak is None:
        device = torch.device("cuda" if hardware.accelerator == "gpu" and torch.cuda.is_available() else "cpu")
        peak = matmul_flops_per_second(device, peak_dtype(hardware.precision)) / 1e12
    return {
        "devices": hardware.world_size,
        "peak_tflops": peak,
        "mfu": expected_mfu,
        "dollars_per_device_hour": hardware.dollars_per_device_hour,
        "device_memory_gib": memory_of_this_device(hardware),
    }


def write_stages(stages: Sequence[Stage], expected_mfu: float, folder: Path) -> None:
    """Writes stages.yaml, from which the chain goes on."""
    content = {"expected_mfu": expected_mfu, "stages": [stage._asdict() for stage in stages]}
    write_yaml(folder / STAGES_FILE, content)
