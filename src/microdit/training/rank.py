"""One of the processes that train together: `python -m microdit.training.rank LAUNCHER FOLDER [CHECKPOINT]`.

Started by distributed/ranks.py, whose process number is LAUNCHER.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from threading import Thread
from time import sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microdit.progress import VisibleConsole

PR_SET_PDEATHSIG = 1  # of Linux's prctl.h


def end_with(launcher: int) -> None:
    """From here on this process ends when the launcher does, also in the seconds in which libraries are loaded."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        Thread(target=watch, args=(launcher,), daemon=True).start()
    if os.getppid() != launcher:
        os._exit(1)


def watch(launcher: int) -> None:
    while os.getppid() == launcher:
        sleep(0.5)
    os._exit(1)


def leave(code: int) -> None:
    """Ends at once: a tidy end would wait for ranks that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def work_as_rank(launcher: str, work: Callable[["VisibleConsole"], None]) -> None:
    """Does `work` as one of several ranks, which end with their launcher: what ends one of them is told where the
    launcher looks for it. A rank that was asked to stop ends well, after leaving word of it."""
    end_with(int(launcher))

    import logging
    import traceback

    import torch

    from microdit.distributed.ranks import PreemptedError, leave_word
    from microdit.progress import VisibleConsole, VisibleRecord, visible

    logging.setLogRecordFactory(VisibleRecord)
    rank = int(os.environ["RANK"])
    try:
        work(VisibleConsole(soft_wrap=True, markup=False, emoji=False, quiet=rank > 0))
    except PreemptedError as error:
        leave_word(rank, error)
        leave(0)
    except Exception as error:
        leave_word(rank, error)
        if rank or not type(error).__module__.startswith("microdit"):
            print(visible(traceback.format_exc()), file=sys.stderr)
        leave(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main(launcher: str, folder: str, checkpoint: str | None = None) -> None:
    """Trains the run in `folder`."""

    def work(console: "VisibleConsole") -> None:
        from pathlib import Path

        from microdit.runs.folder import read_config
        from microdit.training.run import train
        from microdit.training.settings import training_settings

        config = read_config(Path(folder))
        choices = config.pop("choices")
        settings = training_settings(config, Path(folder), choices)
        train(settings, console, None if checkpoint is None else Path(checkpoint))

    work_as_rank(launcher, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
