"""Processes that have the libraries loaded already, which alone takes seconds of every process of a test's.

Each is forked off one that has loaded them, and training, and nothing else.
"""

import atexit
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

LOADED = ["hydra", "microdit.training.run", "microdit.encoders.pixel", "microdit.encoders.words"]


@functools.cache
def warm_processes() -> ForkServerContext:
    """What starts such processes, with `Process` of the standard library."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(LOADED)
    atexit.register(end_all)
    return processes


def end_all() -> None:
    """What a test that failed has left behind, which would be waited for."""
    for process in multiprocessing.active_children():
        process.kill()


def become(command: list[str], folder: Path, environment: Mapping[str, str], said: Path) -> None:
    """Goes on as `python SCRIPT ARGUMENTS`, in a process that was just forked."""
    import torch

    torch.set_num_threads(1)  # as OMP_NUM_THREADS says, which was read when torch was loaded
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


class Script:
    """`python SCRIPT ARGUMENTS` in such a process, with what subprocess.Popen offers of it."""

    def __init__(self, script: str, arguments: list[str], folder: Path, environment: Mapping[str, str]):
        self.args = [script, *arguments]
        self.said = tempfile.TemporaryDirectory()
        self.process = warm_processes().Process(
            target=become, args=(self.args, folder, dict(environment), Path(self.said.name))
        )
        self.process.start()
        assert self.process.pid is not None
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed, when it has ended."""
        self.wait(timeout)
        stdout, stderr = ((Path(self.said.name) / name).read_text() for name in ("stdout", "stderr"))
        return stdout, stderr
