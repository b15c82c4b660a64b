"""Damage at random to every kind of file that is read: named, or harmless; never silent, never a traceback."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from microdit.checkpoints.export import export_weights, read_weights
from microdit.checkpoints.reading import checkpoint_metadata, network_weights, read_checkpoint
from microdit.commands.messages import TOLD_PLAINLY, is_ours
from microdit.data.stream.opening import open_mix
from microdit.files import DamagedFileError, read_yaml, write_yaml
from microdit.pipeline import LatentDiffusion
from microdit.reports.results import read_run
from microdit.runs.folder import checkpoint_path, read_config
from microdit.runs.metrics import lost_end, read_rows
from microdit.runs.record import finished_record, usual_settings
from microdit.training.run import train
from microdit.training.settings import training_settings

DAMAGES = int(os.environ.get("MICRODIT_DAMAGES", "160"))
"""How many files are damaged; 2,000 take some minutes."""
HEAD_AND_TAIL = 4096  # bytes: where formats keep what they say of themselves


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data_root) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def run(run_settings, whole) -> Path:
    """A finished run with everything that is read of one, and its data. Not to be changed."""
    folder = whole / "run"
    if not folder.exists():
        data = f"paths.data_root={whole / 'data'}"
        settings = run_settings("trainer.max_steps=3", "metrics=shapes_loss", data, output=folder)
        train(settings, Console(quiet=True))
        from microdit.runs.folder import write_config

        write_config(folder, settings.config, settings.choices)
        write_yaml(folder / "stages.yaml", {"expected_mfu": 0.2, "stages": [{"name": "a", "config": settings.config}]})
        export_weights(folder)
        LatentDiffusion.load(folder).save(whole / "saved")
    return folder


def weights_of(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {name: tensor.double().sum().item() for name, tensor in state.items()}


def everything_in_the_run(run: Path) -> dict[str, Any]:
    """What anybody reads of a run."""
    config = read_config(run)
    choices = config.pop("choices")
    settings = training_settings(config, run, choices)
    checkpoint = checkpoint_path(run, 3)
    lost = lost_end(run / "metrics.csv", 3, settings.trainer.log_every_n_steps)  # as training and reports say it
    assert lost is None or "metrics.csv ends with step" in lost
    if lost is not None:
        raise DamagedFileError(lost)
    return {
        "config": config,
        "settings": repr(settings.optimizer),
        "record": finished_record(run),
        "row": {name: value for name, value in read_run(run).items() if name != "run"},
        "metrics": read_rows(run / "metrics.csv"),
        "usual": usual_settings(run, "loss"),
        "stages": read_yaml(run / "stages.yaml", "cure"),
        "checkpoint": weights_of(read_checkpoint(checkpoint)["state_dict"]),
        "metadata": repr(checkpoint_metadata(checkpoint)),
        "ema": weights_of(network_weights(checkpoint, "ema")),
        "loaded": weights_of(LatentDiffusion.load(run).dit.state_dict()),
        "exported": weights_of(read_weights(run / "ema_step_0000003.safetensors")),
    }


def everything_saved(folder: Path) -> dict[str, Any]:
    pipeline = LatentDiffusion.load(folder)
    return {"weights": weights_of(pipeline.dit.state_dict()), "settings": pipeline.settings}


def all_data(folder: Path) -> dict[str, Any]:
    """Every sample of a folder of latents."""
    stream = open_mix(
        [{"name": "data", "folder": str(folder)}],
        resolution_px=16,
        seed=0,
        autoencoder="pixel",
        text_encoder="words",
        shuffle=False,
    )
    found = stream.__getitems__(range(len(stream)))
    return {name: np.asarray(found[name]).astype(np.float64).sum() for name in ("latents", "captions")} | {
        "samples": len(stream)
    }


def damaged(file: Path, chance: random.Random) -> str:
    """Changes a file as a disk, a network or an editor might."""
    content = bytearray(file.read_bytes())
    edge = min(len(content), HEAD_AND_TAIL)
    place = chance.choice(
        [chance.randrange(len(content)), chance.randrange(edge), len(content) - 1 - chance.randrange(edge)]
    )
    kind = chance.choice(["flip", "flip", "flip", "truncate", "swap", "zeros", "empty"])
    if kind == "flip":
        content[place] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del content[place:]
    elif kind == "swap":
        other = chance.randrange(len(content))
        content[place], content[other] = content[other], content[place]
    elif kind == "zeros":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    else:
        content.clear()
    file.write_bytes(content)
    return f"{kind} at {place}"


def tell(read: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any] | str:
    """What is read, or the one sentence that a user would be told."""
    try:
        return read(folder)
    except Exception as error:
        if not (is_ours(error) or isinstance(error, TOLD_PLAINLY)):
            raise
        return str(error)


def test_damaged_files_are_named_or_harmless(run, whole, tmp_path):
    latents = next(path.parent for path in (whole / "data").rglob("index.npz") if "train" in path.parts)
    parts = [(run, everything_in_the_run), (whole / "saved", everything_saved), (latents, all_data)]
    expected = [read(folder) for folder, read in parts]
    chance, silent, told = random.Random(20), [], 0
    for number in range(DAMAGES):
        which = number % len(parts)
        folder, read = parts[which]
        copy = tmp_path / folder.name
        shutil.copytree(folder, copy)
        unread = ("samples", "evaluation", "tensorboard", "logs")
        files = [path for path in sorted(copy.rglob("*")) if path.is_file() and not {*path.parts} & {*unread}]
        file = chance.choice(files)
        how = f"{file.relative_to(tmp_path)}: {damaged(file, chance)}"
        try:
            found = tell(read, copy)
        except Exception as error:
            raise AssertionError(f"a traceback: {how}") from error
        if isinstance(found, str):
            told += 1
        elif found != expected[which]:
            differing = [name for name in found if found[name] != expected[which][name]]
            # What a run that cannot be read says of itself is a row of the table, not an error.
            if found.get("row", {}).get("status") != "unreadable":
                silent.append((how, differing))
        shutil.rmtree(copy)
    assert not silent
    assert told > DAMAGES / 3
