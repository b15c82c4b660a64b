"""What a report shows: a small report.yaml beside the results, or the same worked out from how the runs differ."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

from microdit.files import read_yaml
from microdit.kinds import LARGEST_NUMBER, Limits, SettingsError, check_kind, told_with
from microdit.progress import on_one_line
from microdit.reports.results import FINISHED, SETTING, Rows, differ, number

LAYOUT_FILE = "report.yaml"
LAYOUT_CURE = "write it anew (docs/evaluation.md), or remove it: what tells the runs apart is then shown"
MOST_PANELS = 20  # of a figure
LONGEST_LABEL = 200  # characters
MOST_NAMED = 50  # in a title or message
CHOICE = "choice/"
ASIDE = ("metrics", "logger", "callbacks")
"""Choices that do not change what is trained, and so make no row of their own."""


@dataclass(frozen=True)
class RowKey:
    """A column of the results whose values tell rows apart, written as one or more columns of the table.

    `titles` head these; `labels` say how a value is written, one text for each title, in the order of the rows.
    """

    column: str
    titles: tuple[str, ...]
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def label(self, value: str) -> tuple[str, ...]:
        """How a value is written; one without a label stands for itself."""
        return self.labels.get(value, (value or "–", *["–"] * (len(self.titles) - 1)))


FORMAT = re.compile(r"\+?,?(\.\d{1,2})?[efgEFG%]?")  # no widths: they would be as long as they say


@dataclass(frozen=True)
class Column:
    """A number to show, mean and spread over seeds: `scale` times it, in Python's format language.

    `spread`: false for what does not depend on chance, such as counted FLOPs.
    """

    column: str
    title: str
    format: str = ".3g"
    scale: float = 1.0
    spread: bool = True

    def __post_init__(self) -> None:
        if not FORMAT.fullmatch(self.format):
            raise SettingsError(f"{self.title}: no format '{self.format}'; use such as .3f, .3g, ,.0f or .1%")


@dataclass(frozen=True)
class Published:
    """A row of a paper: its `labels`, one a title, the numbers it has by column, in the columns' own units, and where
    they are from."""

    labels: tuple[str, ...]
    values: dict[str, float]
    source: str


@dataclass(frozen=True)
class Layout:
    """A table and its figures. `expected`: rows that should be there, each the values of the row keys, shown as missing
    where no run has them; `expected_runs`: seeds each row should have. `figure`: numbers drawn against `cost`, one line
    for each text in the table's first column. `reference`: a row that all others are compared with, seed by seed.
    `published`: rows of others, which stand below those of our runs."""

    title: str
    rows: list[RowKey]
    columns: list[Column]
    figure: list[Column]
    cost: Column
    expected: list[tuple[str, ...]] = field(default_factory=list)
    expected_runs: int | None = None
    reference: tuple[str, ...] | None = None
    published: list[Published] = field(default_factory=list)

    def labels_of(self, key: Sequence[str]) -> tuple[str, ...]:
        """How the values of a row's key are written."""
        return tuple(short(text) for part, value in zip(self.rows, key, strict=True) for text in part.label(value))


Value = str | float | bool | None
Texts = Value | Annotated[list[Value], Limits(1, 100)]


class RowInFile(TypedDict, total=False):
    """A row key as report.yaml has it; see RowKey."""

    column: str
    title: Texts
    labels: Annotated[dict[Value, Texts], Limits(0, 1000)]


class ColumnInFile(TypedDict, total=False):
    """A column as report.yaml has it; see Column."""

    column: str
    title: str
    format: str
    scale: Annotated[float, Limits(-LARGEST_NUMBER, LARGEST_NUMBER)]
    spread: bool


class PublishedInFile(TypedDict):
    """A published row as report.yaml has it; see Published."""

    row: Texts
    values: Annotated[dict[str, Annotated[float, Limits(-LARGEST_NUMBER, LARGEST_NUMBER)]], Limits(1, 100)]
    source: str


class LayoutInFile(TypedDict, total=False):
    """What report.yaml may say; see Layout."""

    title: str | float
    rows: Annotated[list[str | RowInFile], Limits(1, 100)]
    columns: Annotated[list[str | ColumnInFile], Limits(0, 200)]
    figure: Annotated[list[str | ColumnInFile], Limits(0, MOST_PANELS)]
    cost: str | ColumnInFile
    expected: list[Texts]
    expected_runs: int | None
    reference: Texts
    published: Annotated[list[PublishedInFile], Limits(0, 200)]


# What tables show unless told otherwise, where the runs have it.
QUALITIES = [
    Column("validation/loss", "validation loss", ".4f"),
    Column("denoising_loss/mean", "loss over noise levels", ".4f"),
    Column("frechet_v1/distance", "Frechet distance", ".2f"),
    Column("compositional/overall", "compositional accuracy", ".3f"),
    Column("compositional/single_object_colour", "colour right", ".3f"),
    Column("fid/clean", "FID", ".2f"),
    Column("fid/torchmetrics", "FID (torchmetrics)", ".2f"),
    Column("fid/inception", "FID (torchmetrics)", ".2f"),  # as older runs call it
    Column("fid/clip_vit_b_32", "CLIP-FID", ".2f"),
    Column("geneval/overall", "GenEval", ".3f"),
    Column("clip_score", "CLIP score", ".2f"),
]
COST = Column("total_flops", "training TFLOP", ".3g", 1e-12, spread=False)
COSTS = [
    Column("flops_per_image", "GFLOP an image", ".3g", 1e-9, spread=False),
    COST,
    Column("seconds", "seconds", ".0f"),
]
FIGURE_COLUMNS = ["validation/loss", "frechet_v1/distance", "compositional/overall", "fid/clean", "clip_score"]


def read_layout(folder: Path, results: Rows) -> Layout:
    """The layout in FOLDER/report.yaml; what it leaves out, or all of it, is inferred from the results.

    Raises SettingsError for a key it does not know, a value of another kind, or a column that no run has.
    """
    path = folder / LAYOUT_FILE
    given = on_one_line(read_yaml(path, LAYOUT_CURE)) if path.is_file() else {}
    with told_with(path):
        check_kind(given, LayoutInFile, f"{path}:")
        return layout_of(given, folder, results)


def layout_of(given: Mapping[str, Any], folder: Path, results: Rows) -> Layout:
    """The layout of what a report.yaml holds. Raises SettingsError for what does not fit together."""
    rows = [row_key(one) for one in given["rows"]] if "rows" in given else inferred_rows(results)
    columns = [column(one) for one in given["columns"]] if "columns" in given else present(QUALITIES + COSTS, results)
    if "figure" in given:
        figure = [column(one) for one in given["figure"]]
    else:
        known = {one.column: one for one in (*columns, *QUALITIES)}
        figure = [known[name] for name in FIGURE_COLUMNS if name in known and has(results, name)]
    layout = Layout(
        title=short(str(given.get("title", on_one_line(folder.resolve().name.replace("_", " "))))),
        rows=rows,
        columns=columns,
        figure=figure,
        cost=column(given["cost"]) if "cost" in given else COST,
        expected=[texts(row) for row in given.get("expected", [])],
        expected_runs=given.get("expected_runs"),
        reference=texts(given["reference"]) if "reference" in given else None,
        published=[published_row(one, rows, columns) for one in given.get("published", [])],
    )
    told = {name for row in layout.published for name in row.values} | {one.column for one in QUALITIES}
    for part in (*layout.rows, *layout.columns, *layout.figure):
        if part.column not in results[0] and part.column not in told:
            raise SettingsError(f"no run has '{short(part.column)}'. There are: {some_of(list(results[0]))}")
    named = {"expected": layout.expected, "reference": [layout.reference] if layout.reference else []}
    for what, row in ((what, row) for what, rows in named.items() for row in rows):
        if len(row) != len(layout.rows):
            raise SettingsError(f"the {what} row {list(row)} needs {len(layout.rows)} values, one a row key")
    if layout.expected and layout.reference not in (None, *layout.expected):
        raise SettingsError(f"the reference {list(layout.reference or ())} is none of the expected rows")
    return layout


def row_key(given: Mapping[str, Any] | str) -> RowKey:
    """A row key from YAML: a column's name, or a mapping with `title` and `labels`, each one text or a list of them."""
    settings: dict[str, Any] = {"column": given} if isinstance(given, str) else dict(given)
    name = named_column(settings)
    titles = tuple(map(short, texts(settings.get("title", plain_title(name)))))
    labels = {str(value): texts(label) for value, label in settings.get("labels", {}).items()}
    for value, label in labels.items():
        if len(label) != len(titles):
            raise SettingsError(f"the label of {value} has {len(label)} texts, {name} has {len(titles)} titles")
    return RowKey(name, titles, labels)


def published_row(given: Mapping[str, Any], rows: Sequence[RowKey], columns: Sequence[Column]) -> Published:
    """A published row from YAML. SettingsError where it has not a text for each title, or a number of no column."""
    labels, titles = tuple(map(short, texts(given["row"]))), [title for key in rows for title in key.titles]
    if len(labels) != len(titles):
        raise SettingsError(f"the published row {list(labels)} needs {len(titles)} texts, one for each of {titles}")
    if unknown := sorted({*given["values"]} - {one.column for one in columns}):
        raise SettingsError(f"the published row {list(labels)} has '{short(unknown[0])}', which is no column")
    return Published(labels, dict(given["values"]), short(given["source"]))


def column(given: Mapping[str, Any] | str) -> Column:
    """A column from YAML: its name, or a mapping with the fields of Column."""
    settings: dict[str, Any] = {"column": given} if isinstance(given, str) else dict(given)
    title = short(settings.get("title", plain_title(named_column(settings))))
    return Column(**{**settings, "title": title})


def named_column(settings: Mapping[str, Any]) -> str:
    if "column" not in settings:
        raise SettingsError(f"{dict(settings)} does not name its column")
    return settings["column"]


def plain_title(name: str) -> str:
    """A choice or number in words; a setting as it is typed."""
    return name.removeprefix(SETTING) if name.startswith(SETTING) else name.removeprefix(CHOICE).replace("_", " ")


def texts(given: Any) -> tuple[str, ...]:
    return tuple(map(str, given if isinstance(given, list) else [given]))


def short(text: str) -> str:
    """A text as far as a table or figure has room for it."""
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"


def some_of(names: Sequence[str], between: str = ", ") -> str:
    """Names as far as a title or message has room for them."""
    more = f"{between}and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return between.join(map(short, names[:MOST_NAMED])) + more


def inferred_rows(results: Rows) -> list[RowKey]:
    """The choices that tell the runs apart: `masking`, `mask_ratio` and as many others as it takes; `experiment` where
    that is shorter, or where experiments differ in what is no choice; then the settings that these leave open."""
    choices = [name for name in results[0] if name.startswith(CHOICE) and name.removeprefix(CHOICE) not in ASIDE]
    differing = [name for name in choices if len({row[name] for row in results}) > 1]
    experiment, masking, ratio = (f"{CHOICE}{group}" for group in ("experiment", "masking", "mask_ratio"))
    others = sorted(
        (name for name in differing if name != experiment), key=lambda name: (name != masking, name != ratio, name)
    )
    keys = fewest(others, results)
    if experiment in differing and (len(keys) > 2 or groups(keys, results) < groups(differing, results)):
        keys = fewest([experiment, *others], results)
    settings = [name for name in results[0] if name.startswith(SETTING) and differ(row[name] for row in results)]
    keys = fewest([*keys, *settings], results)
    return [row_key(name) for name in keys or [masking]]


def fewest(candidates: Sequence[str], results: Rows) -> list[str]:
    """The columns, in this order, that each tell some runs apart which those before do not."""
    keys: list[str] = []
    parts, count = [0] * len(results), 1
    for name in candidates:
        numbers: dict[tuple[int, str], int] = {}
        finer = [numbers.setdefault((part, row[name]), len(numbers)) for part, row in zip(parts, results, strict=True)]
        if len(numbers) > count:
            keys.append(name)
            parts, count = finer, len(numbers)
    return keys


def groups(columns: Sequence[str], results: Rows) -> int:
    """How many different rows the columns make."""
    return len({tuple(row[name] for name in columns) for row in results})


def present(columns: Sequence[Column], results: Rows) -> list[Column]:
    """Those that some finished run has a number for."""
    return [one for one in columns if has(results, one.column)]


def has(results: Rows, name: str) -> bool:
    """Whether some finished run has this number."""
    return any(number(row, name) is not None for row in results if row["status"] == FINISHED)
