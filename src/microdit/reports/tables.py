"""Rows of results to a table of means and spreads over seeds, as Markdown, CSV and LaTeX."""

import csv
import io
import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from microdit.kinds import SettingsError
from microdit.reports.layout import COSTS, Column, Layout, short
from microdit.reports.results import FINISHED, SETTING, Rows, differ, no_formula, number

OF_RUNS = "Mean ± standard deviation over the seeds of finished runs; `runs` counts them, and says how others ended."
OF_PAIRS = "Mean ± standard deviation of the difference over the seeds that both rows have; `runs` counts them."

PUBLISHED = "published"
MOST_ROWS = 1_000
MARKUP = re.compile(r"[\\|*$~`]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bwww)\.")  # not what is within a word, as in a_b


@dataclass(frozen=True)
class Cell:
    """Mean over `count` runs, and their standard deviation (of the sample; None for one run)."""

    mean: float
    spread: float | None
    count: int


@dataclass(frozen=True)
class Row:
    """A row: its `key` as in the results and as `labels`, a cell for each column (None: no finished run has it), and
    how its runs ended. `finished` are the names of the runs that count."""

    key: tuple[str, ...]
    labels: tuple[str, ...]
    cells: dict[str, Cell | None]
    finished: list[str]
    ended: str


def summarise(results: Rows, layout: Layout) -> list[Row]:
    """One row for each combination of the row keys that a run has or that is expected, in the order of their labels.

    Only finished runs count; the others are told in `ended`. Raises SettingsError when two finished runs of one row
    have other settings or the same seed: their mean and spread would be over something that the row does not say.
    """
    columns = {column.column: column for column in (*layout.columns, *layout.figure, layout.cost)}
    rows = []
    for key, runs in by_row(results, layout).items():
        done = finished(runs)
        refuse_other_settings(done, key)
        refuse_repeated_seeds(done, key)
        cells = {name: cell(done, column) for name, column in columns.items()}
        names = [run["run"] for run in sorted(done, key=lambda run: number(run, "seed") or 0)]
        rows.append(Row(key, layout.labels_of(key), cells, names, ending(runs, layout.expected_runs)))
    return rows


def published(layout: Layout) -> list[Row]:
    """The rows of others, as a table has them: numbers without a spread, of no runs of ours."""
    return [
        Row(
            (PUBLISHED, *row.labels),
            row.labels,
            {one.column: told(row.values.get(one.column), one) for one in layout.columns},
            [],
            PUBLISHED,
        )
        for row in layout.published
    ]


def told(value: float | None, column: Column) -> Cell | None:
    return None if value is None else Cell(value * column.scale, None, 0)


def differences(results: Rows, layout: Layout) -> tuple[list[Row], Layout]:
    """What each row has minus what `layout.reference` has, seed by seed, and the layout of a table of that: qualities
    only. `ended` counts the seeds that both rows have. No rows where no seed of the reference has finished.

    Runs of one seed see the same samples and noise, so that most of what a seed changes is in both.
    """
    if layout.reference is None:
        return [], layout
    costs = {layout.cost.column, *(column.column for column in COSTS)}
    columns = [replace(c, format=f"+{c.format.removeprefix('+')}") for c in layout.columns if c.column not in costs]
    shown = replace(
        layout, columns=columns, title=f"Minus {', '.join(layout.labels_of(layout.reference))}, seed by seed"
    )
    found = by_row(results, layout)
    base = {run["seed"]: run for run in finished(found.get(layout.reference, []))}
    rows = []
    for key, runs in found.items():
        pairs = [(run, base[run["seed"]]) for run in finished(runs) if run["seed"] in base]
        if base and key != layout.reference:
            cells = {column.column: difference(pairs, column) for column in columns}
            names = [run["run"] for run, _ in pairs]
            rows.append(Row(key, layout.labels_of(key), cells, names, str(len(pairs))))
    return rows, shown


def difference(pairs: Sequence[tuple[dict[str, str], dict[str, str]]], column: Column) -> Cell | None:
    """A column's mean difference and its spread over pairs of runs."""
    both = [(number(run, column.column), number(base, column.column)) for run, base in pairs]
    return cell_of([(one - other) * column.scale for one, other in both if one is not None and other is not None])


def by_row(results: Rows, layout: Layout) -> dict[tuple[str, ...], Rows]:
    """The runs of every row that some run has or that is expected, by key, in the order of the table.
    SettingsError for more than MOST_ROWS."""
    found: dict[tuple[str, ...], Rows] = {}
    for run in results:
        found.setdefault(tuple(run[key.column] for key in layout.rows), []).append(run)
    expected = {*layout.expected}
    if len(expected | found.keys()) > MOST_ROWS:
        raise SettingsError(
            f"a table has room for {MOST_ROWS:,} rows, and these are {len(expected | found.keys()):,}: name fewer "
            "runs, or give `rows` and `expected` in report.yaml less"
        )
    orders = [{value: order for order, value in enumerate(part.labels)} for part in layout.rows]
    others = sorted((key for key in found if key not in expected), key=lambda key: place(key, orders))
    return {key: found.get(key, []) for key in [*layout.expected, *others]}


def finished(runs: Rows) -> Rows:
    return [run for run in runs if run["status"] == FINISHED]


def place(key: tuple[str, ...], orders: Sequence[Mapping[str, int]]) -> list[tuple[int, float, str]]:
    """Where a row stands: labels in their order, other values after them, numbers by size and texts by name."""
    places = []
    for order, value in zip(orders, key, strict=True):
        size = number({"": value}, "")
        places.append((order.get(value, len(order)), math.inf if size is None else size, value))
    return places


def refuse_other_settings(runs: Rows, key: tuple[str, ...]) -> None:
    for name in runs[0] if runs else ():
        if name.startswith(SETTING) and differ(run[name] for run in runs):
            first, other = list({run[name]: run for run in runs if run[name]}.values())[:2]
            raise SettingsError(
                f"row {', '.join(key)}: {first['run']} and {other['run']} differ in {name.removeprefix(SETTING)} "
                f"({first[name]} and {other[name]}). Name only one of them, or give `rows` in report.yaml the column "
                f"{name}"
            )


def refuse_repeated_seeds(runs: Rows, key: tuple[str, ...]) -> None:
    for seed, count in Counter(run["seed"] for run in runs).items():
        if count > 1:
            names = " and ".join([run["run"] for run in runs if run["seed"] == seed][:2])
            raise SettingsError(
                f"row {', '.join(key)}: {names} have the same seed ({seed}). Name only one of them, or give `rows` in "
                "report.yaml a column in which they differ"
            )


def cell(runs: Rows, column: Column) -> Cell | None:
    """A column's mean and spread over runs."""
    return cell_of([value * column.scale for run in runs if (value := number(run, column.column)) is not None])


def cell_of(values: Sequence[float]) -> Cell | None:
    if not values:
        return None
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def ending(runs: Rows, expected: int | None) -> str:
    """How a row's runs ended: "3", or such as "2 (1 failed)"; "missing" without any."""
    if not runs:
        return "missing"
    counts = Counter(short(run["status"]) for run in runs)
    others = [f"{count} {status}" for status, count in counts.items() if status != FINISHED]
    if expected is not None and len(runs) < expected:
        others.append(f"{expected - len(runs)} missing")
    return str(counts[FINISHED]) + (f" ({', '.join(others)})" if others else "")


def shown(cell: Cell | None, column: Column, runs: int) -> str:
    """A cell as text; a dash where there is nothing, and the number of runs where it is not the row's."""
    if cell is None:
        return "–"
    text = format(cell.mean, column.format)
    if cell.spread is not None and column.spread:
        text += f" ± {format(cell.spread, column.format.removeprefix('+'))}"
    return text if cell.count == runs else f"{text} (n={cell.count})"


def row_titles(layout: Layout) -> list[str]:
    return [title for key in layout.rows for title in key.titles]


def header(layout: Layout) -> list[str]:
    return [*row_titles(layout), *(column.title for column in layout.columns), "runs"]


def body(rows: Sequence[Row], layout: Layout) -> list[list[str]]:
    """The table's text, row by row."""

    def line(row: Row) -> list[str]:
        cells = [shown(row.cells[c.column], c, len(row.finished)) for c in layout.columns]
        return [*row.labels, *cells, row.ended]

    return [line(row) for row in rows]


def markdown(rows: Sequence[Row], layout: Layout, explanation: str = OF_RUNS) -> str:
    """The table, its title above and what its numbers mean below."""
    lines = [header(layout), ["---"] * len(row_titles(layout)) + ["---:"] * (len(layout.columns) + 1)]
    lines += body(rows, layout)
    table = "\n".join("| " + " | ".join(map(as_markdown, line)) + " |" for line in lines)
    named = [f"{', '.join(row.labels)}: {row.source}" for row in layout.published]
    sources = "".join(f"- {as_markdown(one)}\n" for one in named)
    if sources and any(row.ended == PUBLISHED for row in rows):
        explanation += f"\n\nPublished rows are as their authors give them:\n{sources}"
    return f"**{as_markdown(layout.title)}**\n\n{table}\n\n{explanation.rstrip()}\n"


def as_markdown(text: str) -> str:
    """Text for a cell, where it can be neither the end of it, nor HTML, nor a link, nor a formula, nor stressed."""
    text = MARKUP.sub(r"\\\g<0>", text)
    return text.replace("<", "&lt;").replace("](", "]\\(")


def as_csv(rows: Sequence[Row], layout: Layout) -> str:
    """The table as numbers: three columns (mean, spread, count) for each one shown."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = [f"{c.title}{suffix}" for c in layout.columns for suffix in ("", " spread", " count")]
    writer.writerow(no_formula([*row_titles(layout), *names, "runs"]))
    for row in rows:
        values: list[str] = []
        for column in layout.columns:
            cell = row.cells[column.column]
            spread = "" if cell is None or cell.spread is None else f"{cell.spread:.7g}"
            values += ["", "", "0"] if cell is None else [f"{cell.mean:.7g}", spread, str(cell.count)]
        writer.writerow(no_formula([*row.labels, *values, row.ended]))
    return file.getvalue()


def latex(rows: Sequence[Row], layout: Layout) -> str:
    """The table for a paper, with the rules of the booktabs package."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    columns = "l" * len(row_titles(layout)) + "r" * (len(layout.columns) + 1)
    lines = [rf"% {layout.title}; needs \usepackage{{booktabs}}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    lines += [line([escaped(cell) for cell in header(layout)]), r"\midrule"]
    lines += [line([escaped(cell) for cell in cells]) for cells in body(rows, layout)]
    lines += [f"% {', '.join(row.labels)}: {row.source}" for row in layout.published]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    """Text for LaTeX."""
    for character in ("\\", "{", "}"):
        if character in text:
            text = text.replace(character, {"\\": "/", "{": "(", "}": ")"}[character])
    for character in "&%$#_":
        text = text.replace(character, f"\\{character}")
    text = text.replace("±", r"$\pm$").replace("–", "--").replace("^", r"\^{}").replace("~", r"\~{}")
    # In LaTeX's default font encoding these are other characters.
    return (
        text.replace("<", r"\textless{}").replace(">", r"\textgreater{}").replace("|", r"\textbar{}").replace('"', "''")
    )
