"""One of the processes that evaluate together: `python -m microdit.commands.evaluation_rank LAUNCHER SETTINGS`."""

import sys
from typing import TYPE_CHECKING

from microdit.training.rank import work_as_rank

if TYPE_CHECKING:
    from microdit.progress import VisibleConsole


def main(launcher: str, settings: str) -> None:
    """Evaluates what a file of settings says, together with the other ranks."""

    def work(console: "VisibleConsole") -> None:
        from pathlib import Path

        from microdit.commands.evaluate import evaluate
        from microdit.evaluation.sharing import join_ranks
        from microdit.files import read_json

        evaluate(**read_json(Path(settings), "evaluate.py writes it"), console=console, ranks=join_ranks())

    work_as_rank(launcher, work)


if __name__ == "__main__":
    main(*sys.argv[1:])
