"""What is shown while work goes on: text of files that cannot move the cursor, and one progress bar for everything that
prepares data."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import progress
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

# What moves the cursor, colours, reverses the order of reading or cannot be encoded; not the ends of lines, nor tabs.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

Report = Callable[[float, float, str], None]


def visible(text: str) -> str:
    """A text with its control characters as escapes, such as \\x1b: it may come from elsewhere."""
    return UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def on_one_line(content: Any) -> Any:
    """What a file holds, with every text in it visible and on one line."""
    if isinstance(content, dict):
        return {on_one_line(name): on_one_line(inner) for name, inner in content.items()}
    if isinstance(content, list):
        return [on_one_line(inner) for inner in content]
    return re.sub(r"[\n\t]", " ", visible(content)) if isinstance(content, str) else content


class VisibleConsole(Console):
    """A console on which text from elsewhere can do nothing but be read; colours and bars are rich's own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


class VisibleRecord(logging.LogRecord):
    """A message of the log: it may hold words of files."""

    def getMessage(self) -> str:
        return visible(super().getMessage())


def silent(done: float, total: float, doing: str) -> None:
    """Report nothing."""


def silently(text: str) -> None:
    """Say nothing."""


def say(text: str) -> None:
    """Prints a line on standard error, above a bar that is shown there."""
    VisibleConsole(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False).print(text)


def counted(number: int, thing: str) -> str:
    """Such as "1 device" or "8 devices"."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """About how long that is, in the unit that suits it."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


SHORT = 10.0  # seconds of work about which nothing is said


class Pace:
    """How long work of `total` units takes, said once by its first unit, if it is not short; None: nobody knows of how
    many it is. It begins when this object is made."""

    def __init__(self, say: Callable[[str], None], doing: str, total: int | None):
        self.say, self.doing, self.total, self.done, self.began = say, doing, total, 0, time.monotonic()

    def step(self, units: int = 1) -> None:
        """So many units more are done."""
        self.done += units
        if self.done == units and self.total is not None:
            seconds = (time.monotonic() - self.began) / units
            if seconds * self.total >= SHORT:
                self.say(f"{self.doing}: about {duration(seconds * self.total)}, by the first, {duration(seconds)}")


@contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """A bar on standard error for as long as the block runs; gives the function that moves it: (done, total, what is
    done)."""
    title_and_bar = progress.SpinnerColumn(), "{task.description}", progress.BarColumn(), progress.MofNCompleteColumn()
    doing_now = progress.TextColumn("{task.fields[doing]}", markup=False)  # may hold the names of files
    times = progress.TimeElapsedColumn(), "ETA", progress.TimeRemainingColumn()
    with progress.Progress(*title_and_bar, *times, doing_now, console=VisibleConsole(stderr=True)) as bar:
        task = bar.add_task(title, total=None, doing="")

        def report(done: float, total: float, doing: str) -> None:
            bar.update(task, completed=done, total=total, doing=doing)

        yield report
