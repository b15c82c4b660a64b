"""One of the processes that train together: `python -m microdit.training.rank FOLDER LAUNCHER [CHECKPOINT]`.

Started by distributed/ranks.py, whose process number is LAUNCHER.
"""

import ctypes
import os
import signal
import sys
from threading import Thread
from time import sleep

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


def main(folder: str, launcher: str, checkpoint: str | None = None) -> None:
    """Trains the run in `folder`. A rank that was asked to stop ends well, after leaving word of it."""
    end_with(int(launcher))

    import logging
    import traceback
    from pathlib import Path

    import torch

    from microdit.distributed.ranks import PreemptedError, leave_word
    from microdit.progress import VisibleConsole, VisibleRecord, visible
    from microdit.runs.folder import read_config
    from microdit.training.run import train
    from microdit.training.settings import training_settings

    logging.setLogRecordFactory(VisibleRecord)
    rank, config = int(os.environ["RANK"]), read_config(Path(folder))
    choices = config.pop("choices")
    try:
        settings = training_settings(config, Path(folder), choices)
        train(
            settings,
            VisibleConsole(soft_wrap=True, markup=False, emoji=False, quiet=rank > 0),
            None if checkpoint is None else Path(checkpoint),
        )
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


if __name__ == "__main__":
    main(*sys.argv[1:])
