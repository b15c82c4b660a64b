"""From a composed configuration to a finished run: a new one, or one that goes on where it stopped."""

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from microdit.build import SettingsError
from microdit.checkpoints import checkpoint_step, checkpoints_of, is_checkpoint
from microdit.training.batches import divide_batch
from microdit.training.hardware import check_hardware, is_rank, is_rank_zero
from microdit.training.rank import CONFIG_FILE
from microdit.training.ranks import run_ranks
from microdit.training.run import RESULT_FILE, train, write_record
from microdit.training.settings import training_settings
from microdit.training.stopping import REQUEUE_CODE, PreemptedError
from microdit.training.summary import show_result

log = logging.getLogger(__name__)


def launch(config: dict[str, Any], choices: dict[str, str], folder: Path, console: Console) -> dict[str, Any]:
    """Runs training in `folder`, on all its devices, and shows what came out; returns the record of result.json.

    The configuration is written first, so that the run can be resumed from the moment it exists. A folder that has
    checkpoints is gone on with: a scheduler started the same job again. A run that fails leaves a result.json that
    says so, then raises; one that was asked to stop ends the process with REQUEUE_CODE.
    """
    try:
        settings = training_settings(config, folder, choices)
        divide_batch(settings.resolution_stage, settings.trainer)
        check_hardware(settings.trainer)
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
            write_config(config, choices, folder)
        if settings.trainer.world_size > 1 and not is_rank():
            run_ranks(folder.resolve(), settings.trainer, checkpoint, console)
            record = json.loads((folder / RESULT_FILE).read_text()) if is_rank_zero() else {}
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
    before = yaml.safe_load((folder / CONFIG_FILE).read_text())
    for group, name, kept in (
        ("resolution_stage", "ema_decay", "a moving average"),
        ("optimizer", "matrix_step", "Muon's state for the matrices"),
    ):
        was, now = before[group].get(name), config[group][name]
        if (was is None) != (now is None):
            raise SettingsError(
                f"{group}.{name} is {was} in {folder}, it cannot become {now}: its checkpoints hold "
                f"{'no such thing as ' if was is None else ''}{kept}. Resume without that change, or start a new run "
                f"from its weights: init_from={folder}"
            )


def write_failure(error: Exception, config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """A result.json that says why there is no other. Where there is no room for it, `error` itself is what matters."""
    if not is_rank_zero():
        return
    failure = {"status": "failed", "error": f"{type(error).__name__}: {error}", "seed": config["seed"]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_record(failure | {f"choice/{group}": choice for group, choice in choices.items()}, folder)
    except OSError as unwritten:
        log.warning("%s cannot be written (%s)", folder / RESULT_FILE, unwritten)


def write_config(config: dict[str, Any], choices: dict[str, str], folder: Path) -> None:
    """Writes config.yaml, whole or not at all."""
    partial = folder / f".{CONFIG_FILE}.{os.environ.get('SLURM_NODEID', '0')}.partial"
    partial.write_text(yaml.safe_dump({**config, "resume": None, "choices": choices}, sort_keys=False))
    partial.replace(folder / CONFIG_FILE)


def checkpoint_to_resume(resume: str | None, folder: Path) -> Path | None:
    """The checkpoint to go on from: the one that `resume` names, else the newest in the folder; None if it has none.

    Those after a named one are set aside under another name: they are of a course that is not followed any more.
    """
    found = checkpoints_of(folder)
    if resume is None or not is_checkpoint(Path(resume)):
        return found[-1] if found else None
    chosen = Path(resume)
    if is_rank_zero():
        for later in found:
            if checkpoint_step(later) > checkpoint_step(chosen):
                later.rename(later.with_name(f"set_aside_{later.name}"))
    return chosen


def pass_on(signal_number: int | None) -> None:
    """Gives a signal to the handler that was there before training's, if any: submitit's puts the job back in line."""
    if signal_number is not None and callable(signal.getsignal(signal_number)):
        os.kill(os.getpid(), signal_number)
