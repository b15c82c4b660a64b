"""Stages of training one after the other, each from the weights of the one before, resumable at any point."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from rich.console import Console

from microdit.analysis.peak import matmul_flops_per_second
from microdit.training.hardware import is_rank_zero, peak_dtype
from microdit.training.launch import launch
from microdit.training.planning import show_plan
from microdit.training.resuming import STAGES_FILE
from microdit.training.run import RESULT_FILE
from microdit.training.settings import training_settings


class Stage(NamedTuple):
    """A run's configuration and choices, and the name of its folder."""

    name: str
    config: dict[str, Any]
    choices: dict[str, str]


def run_chain(stages: Sequence[Stage], folder: Path, expected_mfu: float, console: Console) -> list[dict[str, Any]]:
    """Prints the plan and its cost, then runs the stages in folders below `folder`; returns the record of each.

    A stage that has finished is not run again, and one that has begun goes on. Raises what a run raises; the chain
    then goes on with resume=FOLDER.
    """
    runs = [folder / f"{number}-{stage.name}" for number, stage in enumerate(stages, start=1)]
    stages = [stages[0], *(after(stage, run) for stage, run in zip(stages[1:], runs, strict=False))]
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
        records.append(record or launch({**stage.config, "resume": None}, stage.choices, run, console))
    return records


def after(stage: Stage, run: Path) -> Stage:
    """The stage, starting from the weights of another's run."""
    return stage._replace(config={**stage.config, "init_from": str(run)})


def finished_record(run: Path) -> dict[str, Any] | None:
    """What a run left in result.json, if it finished."""
    path = run / RESULT_FILE
    record = json.loads(path.read_text()) if path.is_file() else {}
    return record if record.get("status") == "finished" else None


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
    }


def write_stages(stages: Sequence[Stage], expected_mfu: float, folder: Path) -> None:
    """Writes stages.yaml, from which the chain goes on."""
    content = {"expected_mfu": expected_mfu, "stages": [stage._asdict() for stage in stages]}
    partial = folder / f".{STAGES_FILE}.partial"
    partial.write_text(yaml.safe_dump(content, sort_keys=False))
    partial.replace(folder / STAGES_FILE)


def saved_stages(folder: Path) -> tuple[list[Stage], float]:
    """The stages of a chain that was begun, and the MFU its plan counted with."""
    content = yaml.safe_load((folder / STAGES_FILE).read_text())
    return [Stage(**stage) for stage in content["stages"]], content["expected_mfu"]
