"""One progress bar for everything that prepares data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

Report = Callable[[float, float, str], None]


def silent(done: float, total: float, doing: str) -> None:
    """Report nothing."""


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """A bar on standard error for as long as the block runs; gives the function that moves it: (done, total, what is
    done)."""
    title_and_bar = progress.SpinnerColumn(), "{task.description}", progress.BarColumn(), progress.MofNCompleteColumn()
    doing_now = progress.TextColumn("{task.fields[doing]}", markup=False)  # may hold the names of files
    times = progress.TimeElapsedColumn(), "ETA", progress.TimeRemainingColumn()
    with progress.Progress(*title_and_bar, *times, doing_now, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, doing="")

        def report(done: float, total: float, doing: str) -> None:
            bar.update(task, completed=done, total=total, doing=doing)

        yield report
