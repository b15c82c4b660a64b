"""One of the processes that train together: `python -m microdit.training.rank FOLDER`, started by `ranks.py`."""

import argparse
import json
import os
import sys
import time
import traceback
from pathlib import Path
from threading import Thread

import torch
import yaml
from rich.console import Console

from microdit.training.run import train
from microdit.training.settings import training_settings
from microdit.training.stopping import REQUEUE_CODE, PreemptedError

CONFIG_FILE = "config.yaml"
EXPECTED = (ValueError, OSError, RuntimeError)  # what our errors derive from: the launcher prints their message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    Thread(target=end_with_the_launcher, daemon=True).start()
    rank, folder = int(os.environ["RANK"]), arguments.folder
    config = yaml.safe_load((folder / CONFIG_FILE).read_text())
    choices = config.pop("choices")
    try:
        train(training_settings(config, folder, choices), Console(soft_wrap=True, quiet=rank > 0), arguments.checkpoint)
    except PreemptedError as error:
        leave_word(folder, rank, error)
        leave(REQUEUE_CODE)
    except Exception as error:
        leave_word(folder, rank, error)
        if rank or not type(error).__module__.startswith("microdit"):
            traceback.print_exc()
        leave(1)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def leave_word(folder: Path, rank: int, error: Exception) -> None:
    """Where the launcher looks for the first error; on a full disk only the terminal or the log has it."""
    named = "" if isinstance(error, PreemptedError) else f"{type(error).__name__}: "
    word = {"rank": rank, "time": time.time(), "error": f"{named}{error}"}
    path = folder / "logs" / f"rank_{rank}_error.json"
    try:
        path.write_text(json.dumps(word))
    except OSError:
        path.unlink(missing_ok=True)
        print(word["error"], file=sys.stderr)


def leave(code: int) -> None:
    """Ends at once: a tidy end would wait for ranks that may be gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_with_the_launcher() -> None:
    """The launcher holds the other end of standard input and never writes: its end is the launcher's."""
    os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    main()
