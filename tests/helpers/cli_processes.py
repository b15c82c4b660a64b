"""Entry points as a user runs them: in a process of their own, in the repository; and what one may do to them."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from small_run import QUICK_PICTURES, SMALL_RUN
from warm_processes import Script

ROOT = Path(__file__).parents[2]
SMALL = ["name=test", *SMALL_RUN, *QUICK_PICTURES, "metrics=none", "logger=csv"]
TWO = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true"]
EVERY_STEP = ["trainer.log_every_n_steps=1"]


def environment() -> dict[str, str]:
    # One thread: the machine may be busy with other tests.
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def last_of_each(arguments: Sequence[str]) -> list[str]:
    """A command line with each setting once, as entry points want it: what a test asks for, in place of what a list
    that it shares with others says."""
    last = {argument.partition("=")[0]: argument for argument in arguments}
    return [argument for argument in dict.fromkeys(arguments) if argument in last.values()]


def start_script(script: str, *arguments: str, folder: Path = ROOT) -> Script:
    """`python SCRIPT ARGUMENTS`, without waiting for its end."""
    return Script(str(ROOT / script), last_of_each(arguments), folder, environment())


def run_script(
    script: str, *arguments: str, folder: Path = ROOT, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """`python SCRIPT ARGUMENTS` when it has ended, its output as text. `cold` starts Python as well and loads the
    libraries as the script does, which one test of every script asks for."""
    if cold:
        command = [sys.executable, str(ROOT / script), *last_of_each(arguments)]
        return subprocess.run(
            command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600, check=False
        )
    process = start_script(script, *arguments, folder=folder)
    stdout, stderr = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.wait(), stdout, stderr)


def steps(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def wait_for(condition, process: Script, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}:\n{process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(process: Script) -> list[int]:
    """Of a launcher: its ranks, in the order in which they were started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
