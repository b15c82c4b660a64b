"""One progress bar for everything that prepares data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Report = Callable[[float, float, str], None]


def silent(done: float, total: float, doing: str) -> None:
    """Report nothing."""


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """A bar on standard error for as long as the block runs; gives the function that moves it: (done, total, what is
    done)."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[doing]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, doing="")

        def report(done: float, total: float, doing: str) -> None:
            bar.update(task, completed=done, total=total, doing=doing)

        yield report
