"""What every metric is: something that looks at a trained pipeline, or at pictures it drew, and returns numbers."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from PIL import Image

from microdit.build import build
from microdit.evaluation.subject import Subject, suffix
from microdit.files import alone_in, replacing
from microdit.kinds import Limits, SettingsError
from microdit.pipeline import LatentDiffusion
from microdit.progress import Report, progress_bar, silent

LOOK = "look"
Part = TypeVar("Part")


class Metric(ABC):
    """A measurement of a trained pipeline, chosen by `conf/metrics/`. `option`: where it is set, for messages."""

    option: ClassVar[str] = "metrics.NAME"

    def ask(self, pipeline: LatentDiffusion) -> None:
        """Raises what `evaluate` would raise because something is not there, such as weights or data: before training,
        and not after it. By default the encoders of the pipeline are asked for."""
        pipeline.load_encoders()

    @abstractmethod
    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image | None]:
        """Named numbers for result.json, and a picture of what was judged where there is one to show."""


@dataclass(frozen=True)
class Look(Metric):
    """A metric that a run is also measured with while it trains, each `every_n_steps` steps: few pictures, to see how
    it learns. `metric`: settings of the metric.

    Its numbers are called look/..., and its pictures lie apart: the metric as a whole has others.
    """

    metric: Mapping[str, Any]
    every_n_steps: Annotated[int, Limits(1, 10**9)]

    def __post_init__(self) -> None:
        build(self.metric, Metric, "metric")  # raises SettingsError

    @property
    def inner(self) -> Metric:
        return located(build(self.metric, Metric, "metric"), f"{self.option}.metric")

    def ask(self, pipeline: LatentDiffusion) -> None:
        self.inner.ask(pipeline)

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image | None]:
        apart = subject.apart(LOOK)
        numbers, shown = self.inner.evaluate(apart)
        subject.changed = apart.changed
        return {f"{LOOK}/{name}": value for name, value in numbers.items()}, shown


def built_part(metric: Metric, name: str, kind: type[Part]) -> Part:
    """What a metric's settings of this name describe. Raises what `build` does, and what is raised when it is made,
    where settings are called as they are typed: metrics.fid.features.weights."""
    try:
        return build(getattr(metric, name), kind, name)
    except (SettingsError, FileNotFoundError) as error:
        raise type(error)(re.sub(rf"(?<![\w.]){name}\.", f"{metric.option}.{name}.", str(error))) from error


def located(metric: Metric, option: str) -> Metric:
    """The same metric, which knows where its settings are."""
    object.__setattr__(metric, "option", option)  # it is frozen, and of no concern to what it measures
    return metric


def built_metrics(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Metric]:
    """The metrics of a configuration's group, by their names in it. SettingsError for settings of none."""
    options = {name: f"metrics.{name}" for name in settings}
    return {name: located(build(settings[name], Metric, option), option) for name, option in options.items()}


def draws_pictures(settings: Mapping[str, Any]) -> bool:
    """Whether the metric of these settings has pictures drawn, rather than looking at the network."""
    return "sampling" in settings or "sampling" in settings.get("metric", {})


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
        if subject.ranks.leads:
            measured(name, values, None if shown is None else keep_shown(shown, subject.kept_in / f"{name}.png"))
        numbers |= values
    return numbers


def keep_shown(shown: Image.Image, path: Path) -> Path:
    """Writes a picture of what was judged, and says where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(path.parent), replacing(path, "wb") as file:
        shown.save(file, "png")
    return path
