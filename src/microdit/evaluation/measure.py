"""Every metric of a list on one subject: at the end of training, and by `evaluate.py`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from microdit.data.progress import progress_bar
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import Subject, suffix


def measure(
    subject: Subject,
    metrics: Mapping[str, Metric],
    measured: Callable[[str, dict[str, float], Path | None], None],
    unusual: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, float]:
    """All metrics' numbers, their names ending in what sets them apart: the subject's parts, then the metric's of
    `unusual`, such as "@raw,count=512".

    After each metric `measured(its name, its numbers, picture of what was judged)` is called, so that nothing is lost
    when a later one fails; the picture is FOLDER/METRIC.png, None where the metric shows none.
    """
    numbers: dict[str, float] = {}
    for name, metric in metrics.items():
        subject.changed = []
        with progress_bar(f"evaluating {name}") as report:
            subject.progress = lambda done, total, report=report: report(done, total, "network evaluations")
            values, shown = metric.evaluate(subject)
        apart = suffix([*subject.label, *subject.changed, *(unusual or {}).get(name, [])])
        values = {f"{key}{apart}": value for key, value in values.items()}
        path = None
        if shown is not None:
            path = subject.kept_in / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            shown.save(path)
        measured(name, values, path)
        numbers |= values
    return numbers
