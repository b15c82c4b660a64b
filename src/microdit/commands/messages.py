"""What the user is told: consoles, and mistakes as one message that says what to do."""

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

from rich.text import Text

from microdit.kinds import Place, SettingsError
from microdit.progress import VisibleConsole, VisibleRecord, on_one_line

# What is printed holds paths and other people's words: nothing in it is markup.
console = VisibleConsole(soft_wrap=True, markup=False, emoji=False)
errors = VisibleConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

DEBUG = "MICRODIT_DEBUG"
# Mistakes whose message is all there is to say, as a rule; anything else keeps its traceback.
TOLD_PLAINLY = (OSError, ValueError, FloatingPointError)
END_OF_MEMORY = ("can't allocate memory", "out of memory")  # as torch says it
MOST_OF_ERROR = 300  # characters
failed_jobs: list[str] = []


def is_ours(error: BaseException) -> bool:
    """Whether an error is of a kind that this project defines: each of these says what to do."""
    return type(error).__module__.partition(".")[0] == "microdit"


def is_end_of_memory(error: BaseException) -> bool:
    """Whether an error says that no more memory could be had, in Python's way or in torch's."""
    by_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in END_OF_MEMORY)
    return by_torch or isinstance(error, MemoryError)


def tell_and_exit(message: str, error: BaseException) -> None:
    """Prints what is wrong and ends with exit code 1. With MICRODIT_DEBUG=1 the traceback comes first."""
    if os.environ.get(DEBUG):
        errors.print("".join(traceback.format_exception(error)), end="")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        message += "; more may be open at once after ulimit -n 4096"
    told = message.replace("\n", "\n  ")  # what a file says cannot pass for another message
    errors.print(Text.assemble(("error:", "red"), f" {told}"))
    if failed_jobs:
        errors.print(f"{len(failed_jobs)} jobs of the sweep failed, the others ran: {', '.join(failed_jobs)}")
    if not os.environ.get(DEBUG):
        errors.print(f"({DEBUG}=1 before the command shows where it came from)", style="dim")
    sys.exit(1)


def run_told(main: Callable[[], None]) -> None:
    """Calls `main`. A mistake of the user ends the process with one message and exit code 1; Ctrl-C with 130."""
    logging.setLogRecordFactory(VisibleRecord)
    try:
        main()
    except Exception as error:
        if is_end_of_memory(error):
            told = on_one_line(str(error)[:MOST_OF_ERROR]) or "nothing more is known"
            tell_and_exit(f"memory ended ({told}): do less at once, such as by a smaller batch_size or network", error)
        if not isinstance(error, TOLD_PLAINLY) and not is_ours(error):
            sys.excepthook = lambda *raised: errors.print("".join(traceback.format_exception(*raised)), end="")
            raise
        tell_and_exit(str(error), error)
    except KeyboardInterrupt:
        errors.print(
            "stopped by Ctrl-C; what is complete is kept: train.py goes on from the newest checkpoint with resume=RUN, "
            "prepare.py with the same command"
        )
        sys.exit(130)


def tell_places(places: Iterable[tuple[str, str, Place]], file: Path) -> None:
    """Names what is about to be read because a run's file says so: the file may come from somebody else."""
    if told := list(dict.fromkeys(on_one_line(f"{key}={text}") for key, text, _ in places)):
        console.print(f"as {file} says: {', '.join(told)}", highlight=False)


def check_device(device: str) -> None:
    """Raises SettingsError for a device that this machine, or this build of torch, does not have."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # as torch says it: the driver, the build, or the name
        raise SettingsError(
            f"device={device} cannot be used here ({str(error).splitlines()[0]}); device=cpu always can"
        ) from error
