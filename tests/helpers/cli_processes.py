"""Small runs in processes of their own, and what one may do to them."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

from small_run import QUICK_PICTURES, SMALL_RUN

ROOT = Path(__file__).parents[2]
SMALL = ["name=test", *SMALL_RUN, *QUICK_PICTURES, "metrics=none", "trainer.peak_tflops=0.1", "logger=csv"]
TWO = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true"]
EVERY_STEP = ["trainer.log_every_n_steps=1"]


def steps(run: Path) -> list[int]:
    with (run / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def wait_for(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}:\n{process.communicate()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "train.py", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def children(process: subprocess.Popen) -> list[int]:
    """Of a launcher: its ranks, in the order in which they were started."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
