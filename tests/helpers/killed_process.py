"""A run of training that kills itself at one of its file operations, as a machine that loses its power would."""

import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from microdit.runs.folder import checkpoints_of
from microdit.training.run import train

WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "os.link"}


def train_and_be_killed(settings, at: int | None, counted: Path) -> None:
    """Trains, or goes on from the newest checkpoint. At the `at`-th operation on a file of the run it is killed, before
    that; None: it ends, and how many there were is in `counted`."""
    run, operations = str(settings.output), 0

    def watch(event: str, arguments: tuple) -> None:
        nonlocal operations
        if not arguments or not str(arguments[0]).startswith(run):
            return
        opened_to_write = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event in WRITES or opened_to_write:
            if operations == at:
                os.kill(os.getpid(), signal.SIGKILL)
            operations += 1

    sys.addaudithook(watch)
    found = checkpoints_of(settings.output)
    train(settings, Console(quiet=True), found[-1] if found else None)
    counted.write_text(str(operations))
