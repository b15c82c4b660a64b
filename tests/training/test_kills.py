"""A run that is killed at any of its operations on files, and resumed, has all that an undisturbed one has."""

import filecmp
import os
import signal

import pytest
import torch
from killed_process import train_and_be_killed
from warm_processes import warm_processes

from microdit.checkpoints.reading import network_weights
from microdit.files import read_json
from microdit.runs.folder import checkpoints_of

RUN = [
    "trainer.max_steps=6",
    "trainer.validate_every_n_steps=2",
    "trainer.checkpoint_every_n_steps=2",
    "trainer.keep_checkpoints=2",
    "callbacks.samples.every_n_steps=3",
    "reading.num_workers=0",
]
EVERY = int(os.environ.get("MICRODIT_KILL_EVERY", "9"))
"""A run has about 60 operations on files: 1 kills at each of them, which takes minutes."""
TIMES = ("seconds", "images_per_second", "mfu", "peak_memory", "wait", "dollars")


def run_to(settings, at, counted):
    process = warm_processes().Process(target=train_and_be_killed, args=(settings, at, counted))
    process.start()
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return tmp_path_factory.mktemp("kills")


@pytest.fixture
def undisturbed(run_settings, places):
    """The folder of a run that nobody killed, and how many operations on files it made."""
    run, counted = places / "undisturbed", places / "counted"
    if not counted.exists():
        assert run_to(run_settings(*RUN, output=run), None, counted) == 0
    return run, int(counted.read_text())


def steady(numbers):
    """Without what a clock or the system's memory says."""
    return {name: value for name, value in numbers.items() if not any(part in name for part in TIMES)}


def test_killed_at_any_operation_on_a_file_it_ends_with_the_same_rows_result_weights_and_pictures(
    run_settings, undisturbed, places, logged, tmp_path
):
    whole, operations = undisturbed
    assert operations > 40
    for at in range(0, operations, EVERY):
        run = tmp_path / f"killed_at_{at}"
        assert run_to(run_settings(*RUN, output=run), at, tmp_path / "never") == -signal.SIGKILL
        assert run_to(run_settings(*RUN, output=run), None, tmp_path / "counted") == 0, at
        for name in ("train/loss", "train/gradient_norm", "validation/loss", "train/flops", "data/replaced"):
            assert logged(run, name) == logged(whole, name), (at, name)
        assert steady(read_json(run / "result.json", "")) == steady(read_json(whole / "result.json", "")), at
        a, b = (network_weights(checkpoints_of(folder)[-1], "ema") for folder in (run, whole))
        assert all(torch.equal(a[name], b[name]) for name in b), at
        pictures = [path.name for path in (whole / "samples").iterdir()]
        assert filecmp.cmpfiles(whole / "samples", run / "samples", pictures, shallow=False) == (pictures, [], []), at
        assert [path.name for path in checkpoints_of(run)] == [path.name for path in checkpoints_of(whole)], at
        assert not list(run.rglob("*.partial")), at
