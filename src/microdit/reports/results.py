"""Runs to flat rows, one a run: from their folders, or from a results.csv that was committed."""

import csv
import logging
import re
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from microdit.files import DamagedFileError, read_json, replacing, size_of_file
from microdit.kinds import SettingsError
from microdit.progress import on_one_line
from microdit.runs.differences import settings_of
from microdit.runs.folder import METRICS_FILE, RESULT_FILE, read_config
from microdit.runs.metrics import lost_end, read_rows

log = logging.getLogger(__name__)
FINISHED = "finished"
Rows = list[dict[str, str]]
"""Every value as a CSV file holds it; all rows have the same columns."""
SETTING = "setting/"
"""Begins the columns of settings that differ between the runs, such as setting/variation.patch_mixer_depth."""
NOT_SET = "not set"
FIRST_COLUMNS = ["run", "status", "error", "seed"]
LARGEST = 1e100
"""Numbers beyond this are none that a run has measured, and sums and squares of those below it are numbers too."""
MOST_CELLS, LEAST_CELLS = 3_000_000, 5  # of a table, and of what a row takes, however few it has
CURVE_POINTS = 40
"""Training losses are averaged to so many points a run: what a curve shows, and small enough to commit."""
FORMULA, APOSTROPHE = re.compile("'*[=+@-]"), re.compile("^'(?='*[=+@-])")
ABSOLUTE_PATH = re.compile(r"(?<![\w.])/(?:[^\s/:'\"]+/)+")


def read_run(run: Path) -> dict[str, str]:
    """The record of one run as texts, with its settings from config.yaml. One that left no result.json, or a damaged
    one, says so in its status.

    A run that ended early has no record of its seed and choices (or none at all): they too are taken from config.yaml.
    """
    path = run / RESULT_FILE
    try:
        record = read_json(path, "")
    except FileNotFoundError:
        record = {"status": "unfinished", "error": f"no {RESULT_FILE}: still running, or killed"}
    except DamagedFileError as error:
        record = {"status": "unreadable", "error": str(error)}
    try:
        config = read_config(run)
    except ValueError as error:
        config = {}
        record |= {"status": "unreadable", "error": str(error)}
    chosen = config.get("choices", {})
    if not isinstance(record.get("status"), str):
        record = {"status": "unreadable", "error": f"{path.name} is none of a run"}
    if record.get("status") != FINISHED and config:
        told = {f"choice/{group}": choice for group, choice in chosen.items()}
        record = {"seed": config.get("seed"), **told, **record}
    record |= {f"{SETTING}{name}": value for name, value in compared_settings(config).items()}
    if "error" in record:
        # One line, and nothing about the machine it ran on: results are committed.
        record["error"] = ABSOLUTE_PATH.sub("", str(record["error"]).partition("\n")[0])
    record = {**record, "run": f"{run.resolve().parent.name}/{run.resolve().name}"}
    return {on_one_line(name): on_one_line(as_text(value)) for name, value in record.items()}


def compared_settings(config: dict[str, Any]) -> dict[str, str]:
    """The settings by which runs are told apart: not the seed, nor which run it started from (each seed has its own),
    nor what measures it. Without folders of the machine: results are committed."""
    settings = {
        name: ABSOLUTE_PATH.sub("", value)
        for name, value in settings_of(config).items()
        if name != "seed" and name.partition(".")[0] not in ("choices", "metrics")
    }
    if settings.get("init_from", "null") != "null":
        settings["init_from"] = "another run"
    return settings


def collect(runs: Sequence[Path]) -> Rows:
    """One row a run, one column a name in any run's record; of settings only those that differ.

    Raises SettingsError when two runs have one name, or together they have more than MOST_CELLS values.
    """
    records = [read_run(run) for run in runs]
    taken = [record["run"] for record in records]
    if len({*taken}) < len(taken):
        twice = next(name for name in taken if taken.count(name) > 1)
        raise SettingsError(f"two of these runs are called {twice}: rename the folder of one sweep")
    names = dict.fromkeys(name for record in records for name in record)
    if len(names) * len(records) > MOST_CELLS:
        most = max(records, key=len)
        raise SettingsError(
            f"these {len(records):,} runs have {len(names):,} different numbers and settings, more than a table holds; "
            f"{most['run']} alone has {len(most):,}: name fewer runs, or leave that one out"
        )
    for record in records:
        if any(name.startswith(SETTING) for name in record):  # else its configuration is lost, and it says nothing
            record.update({name: NOT_SET for name in names if name.startswith(SETTING) and name not in record})
    same = {name for name in names if name.startswith(SETTING) and not differ(record.get(name) for record in records)}
    columns = [*FIRST_COLUMNS, *sorted(name for name in names if name not in FIRST_COLUMNS and name not in same)]
    return [{name: record.get(name, "") for name in columns} for record in records]


def differ(values: Iterable[Any]) -> bool:
    """Whether there are two different values; a run that does not know its own says nothing."""
    return len({*values} - {None, ""}) > 1


def as_text(value: Any) -> str:
    """A value as results.csv holds it: numbers to 7 digits, nothing for what is missing. A table made from runs then
    equals one made from the file."""
    if value is None:
        return ""
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def write_csv(rows: Rows, path: Path) -> None:
    """Writes rows, the first one's columns first. Raises SettingsError when there are none."""
    if not rows:
        raise SettingsError(f"there is nothing to write to {path}")
    with replacing(path, encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(no_formula(list(rows[0])))
        writer.writerows(no_formula([row[name] for name in rows[0]]) for row in rows)


def no_formula(cells: Sequence[str]) -> list[str]:
    """Cells of a CSV file that no spreadsheet takes for a formula: what begins as one, and is no number, is text after
    an apostrophe, which `read_csv` takes away again."""
    return [f"'{cell}" if FORMULA.match(cell) and number({"": cell}, "") is None else cell for cell in cells]


def read_csv(path: Path, needed: Sequence[str] = ()) -> Rows:
    """Rows as they were written. Raises SettingsError when there is no such file, or one without the columns that are
    `needed`."""
    if not path.is_file():
        raise SettingsError(
            f"{path} does not exist: name the runs it is made from, python report.py {path.parent} runs/sweep_..."
        )
    size_of_file(path)
    cure = f"make it anew: python report.py {path.parent} runs/sweep_..."
    rows: Rows = []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = csv.reader(file, strict=True)
            if (first := next(lines, None)) is None:
                raise SettingsError(f"{path} is damaged (it is empty); {cure}")
            columns = as_read(first)
            if lacking := [name for name in needed if name not in columns]:
                raise SettingsError(f"{path} has no column {', '.join(lacking)}; {cure}")
            for number, line in enumerate(lines, start=2):
                if len(line) != len(columns):
                    raise SettingsError(
                        f"{path}, row {number}, has {len(line)} values where the first has {len(columns)}; {cure}"
                    )
                if len(rows) * max(len(columns), LEAST_CELLS) > MOST_CELLS:
                    raise SettingsError(f"{path} has more than {len(rows):,} rows, and a table holds no more; {cure}")
                rows.append(dict(zip(columns, as_read(line), strict=True)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is damaged ({error}); {cure}") from error
    if not rows:
        raise SettingsError(f"{path} holds no runs; {cure}")
    return rows


def as_read(cells: Sequence[str]) -> list[str]:
    """Cells of a CSV file as `no_formula` was given them."""
    return [APOSTROPHE.sub("", on_one_line(cell)) for cell in cells]


def number(row: dict[str, str], column: str) -> float | None:
    """A value as a number; None where a run has none, or one that is not finite or beyond LARGEST."""
    try:
        value = float(row.get(column, ""))
    except ValueError:
        return None
    return value if abs(value) < LARGEST else None


def curves(runs: Sequence[Path]) -> Rows:
    """Loss curves of all runs from their metrics.csv: run, step (optimizer steps done), flops (spent by then),
    train_loss (mean of a stretch of steps that ends there), validation_loss. Runs without a metrics.csv have no rows.
    """
    found: Rows = []
    for run in runs:
        path = run / METRICS_FILE
        if path.is_file():
            record = read_run(run)
            lost = lost_end(path, int(number(record, "steps") or 0), 1) if record["status"] == FINISHED else None
            if lost is not None:
                log.warning("%s; its curve is cut", lost)
            found += [{"run": record["run"], **point} for point in curve_points(read_rows(path))]
    return found


def curve_points(logged: Rows) -> Rows:
    """The points of one run's curves, by step."""
    points: dict[int, dict[str, float | None]] = {}
    steps = {int(row["step"]) + 1: row for row in logged}
    train = [(step, loss) for step, row in steps.items() if (loss := number(row, "train/loss")) is not None]
    size = max(1, -(-len(train) // CURVE_POINTS))
    for start in range(0, len(train), size):
        stretch = train[start : start + size]
        points.setdefault(stretch[-1][0], {})["train_loss"] = statistics.fmean(loss for _, loss in stretch)
    for step, row in steps.items():
        if (loss := number(row, "validation/loss")) is not None:
            points.setdefault(step, {})["validation_loss"] = loss
    return [
        {
            "step": str(step),
            "flops": as_text(number(steps[step], "train/flops")),
            "train_loss": as_text(point.get("train_loss")),
            "validation_loss": as_text(point.get("validation_loss")),
        }
        for step, point in sorted(points.items())
    ]
