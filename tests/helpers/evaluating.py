"""One rank of an evaluation, in a process that has the libraries loaded already; and one that is killed on the way."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from judging import bright_dogs, pictures_of_dogs
from rank_process import rank_environment
from rich.console import Console

from microdit.commands.evaluate import evaluate
from microdit.evaluation.geneval.verdicts import judged
from microdit.evaluation.journal import Journal
from microdit.evaluation.sharing import OtherRankError, join_ranks
from microdit.evaluation.subject import silent


def joined(rank: int, world_size: int, port: int):
    os.environ |= rank_environment(rank, world_size, port)
    torch.set_num_threads(1)
    return join_ranks()


def evaluate_as_rank(rank: int, world_size: int, port: int, arguments: dict[str, Any], at: int | None = None) -> None:
    """Evaluates with the others; when this rank has kept its `at`-th verdict, it is killed."""
    ranks, add, mine = joined(rank, world_size, port), Journal.add, []

    def add_and_be_killed(journal: Journal, line: Any) -> None:
        add(journal, line)
        mine.append(line)
        if len(mine) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.add = add_and_be_killed
    evaluate(**arguments, console=Console(quiet=True), ranks=ranks)


def judge_as_rank(rank: int, world_size: int, port: int, folder: Path, requests: Path, count: int, at: int | None):
    """Judges pictures with the others; when this rank is asked about its `at`-th picture, it is killed."""
    ranks, mine = joined(rank, world_size, port), []

    def asked(shade: int) -> None:
        mine.append(shade)
        if len(mine) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        with requests.open("a") as file:
            file.write(f"{shade}\n")

    verdicts = judged(folder, pictures_of_dogs(count), count, bright_dogs(asked), silent, ranks)
    assert [verdict["correct"] for verdict in verdicts] == list(np.linspace(0, 255, count).astype(np.uint8) >= 128)


def fail_as_rank(rank: int, world_size: int, port: int, folder: Path) -> None:
    """Gathers with the others; then what the first does fails, which each keeps as it is told of it."""
    ranks = joined(rank, world_size, port)
    (folder / f"gathered_{rank}").write_text(json.dumps(ranks.gathered(rank)))
    try:
        ranks.of_first(lambda: Path("nowhere").read_text())
    except (OSError, OtherRankError) as error:
        (folder / f"failed_{rank}").write_text(f"{type(error).__name__}: {error}")
