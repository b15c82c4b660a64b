"""What every metric is: something that looks at a trained pipeline, or at pictures it drew, and returns numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from PIL import Image

from microdit.evaluation.subject import Subject, suffix
from microdit.files import alone_in, replacing
from microdit.pipeline import LatentDiffusion
from microdit.progress import Report, progress_bar, silent


class Metric(ABC):
    """A measurement of a trained pipeline, chosen by `conf/metrics/`."""

    def ask(self, pipeline: LatentDiffusion) -> None:
        """Raises what `evaluate` would raise because something is not there, such as weights or data: before training,
        and not after it. By default the encoders of the pipeline are asked for."""
        pipeline.load_encoders()

    @abstractmethod
    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image | None]:
        """Named numbers for result.json, and a picture of what was judged where there is one to show."""


def told(report: Report, done: int, total: int, doing: str = "network evaluations") -> None:
    """How far a metric is, on the bar."""
    report(done, total, doing)


def measure(
    subject: Subject,
    metrics: Mapping[str, Metric],
    measured: Callable[[str, dict[str, float], Path | None], None],
    unusual: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """All metrics' numbers, their names ending in what sets them apart: the subject's parts, then the metric's of
    `unusual`, such as "@raw,count=512".

    With several ranks every one of them has all numbers, and the first alone writes and tells. After each metric
    `measured(its name, its numbers, picture of what was judged)` is called, so that nothing is lost
    when a later one fails; the picture is FOLDER/METRIC.png, None where the metric shows none.
    """
    numbers: dict[str, float] = {}
    for name, metric in metrics.items():
        subject.changed = []
        with progress_bar(f"evaluating {name}") if subject.ranks.leads else nullcontext(silent) as report:
            subject.progress = partial(told, report)
            values, shown = metric.evaluate(subject)
        apart = suffix([*subject.label, *subject.changed, *(unusual or {}).get(name, [])])
        values = {f"{key}{apart}": value for key, value in values.items()}
        path = None
        if shown is not None and subject.ranks.leads:
            path = subject.kept_in / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            with alone_in(path.parent), replacing(path, "wb") as file:
                shown.save(file, "png")
        if subject.ranks.leads:
            measured(name, values, path)
        numbers |= values
    return numbers
