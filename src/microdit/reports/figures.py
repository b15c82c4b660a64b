"""Figures of a report: quality against compute, one line a method, and loss curves."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from microdit.reports.layout import Column, Layout, some_of
from microdit.reports.results import Rows, number
from microdit.reports.tables import Row

PANEL_INCHES = (5.2, 3.9)
LINE_CHARACTERS = 85  # of the notes, below one panel
MARKERS = "osD^vP*X"
Drawn = TypeVar("Drawn")
MOST_DRAWN = 500  # rows, counted in each panel: beyond that nobody tells them apart, and each takes milliseconds


# A figure is the same whatever a matplotlibrc says, which is read from the folder a report is started in, and may have
# programs started (text.usetex). A dollar in a name begins no formula.
AS_IT_IS: dict[Any, Any] = {**mpl.rcParamsDefault, "text.parse_math": False}
AS_IT_IS.pop("backend")


def save_figure(figure: Figure, file: BinaryIO) -> None:
    """Writes a figure as PNG."""
    with mpl.rc_context(AS_IT_IS):
        figure.savefig(file, format="png", metadata={"Software": None})


@mpl.rc_context(AS_IT_IS)
def quality_against_cost(rows: Sequence[Row], layout: Layout) -> Figure | None:
    """A panel for each number of `layout.figure` against training FLOPs: mean over seeds, bars of one standard
    deviation. Rows with the same first key are joined to a line, its points named by their other keys; a row that is
    alone with its first key is named beside the panels in full. None where no row has such numbers."""
    panels = [column for column in layout.figure if any(point(row, column, layout.cost) for row in rows)]
    if not panels:
        return None
    shown, told = with_room([row for row in rows if any(point(row, one, layout.cost) for one in panels)], len(panels))
    figure, axes = panelled(len(panels))
    lines: dict[str, list[Row]] = {}
    for row in shown:
        lines.setdefault(row.labels[0], []).append(row)
    for axis, column in zip(axes, panels, strict=True):
        for index, (line, mine) in enumerate(lines.items()):
            points = [(p, row) for row in mine if (p := point(row, column, layout.cost)) is not None]
            drawn = sorted(points, key=lambda pair: pair[0])
            if drawn:
                alone = len(mine) == 1
                draw_line(axis, drawn, ", ".join(mine[0].labels) if alone else line, index, names_points=not alone)
        axis.set_xlabel(layout.cost.title)
        axis.set_ylabel(column.title)
        if found := [p for row in shown if (p := point(row, column, layout.cost)) is not None]:
            scale(axis, [x for x, _, _ in found], [end for _, y, spread in found for end in (y - spread, y)])
    finish(figure, axes, layout.title, list(lines), f"{told}{not_drawn(rows, panels, layout)}")
    return figure


def with_room(drawn: Sequence[Drawn], panels: int) -> tuple[Sequence[Drawn], str]:
    """Those that so many panels have room for, and what to say at its foot where that is not all of them."""
    shown = drawn[: MOST_DRAWN // panels]
    return shown, "" if len(shown) == len(drawn) else f"\nthe first {len(shown):,} of {len(drawn):,} rows"


def point(row: Row, column: Column, cost: Column) -> tuple[float, float, float] | None:
    """Cost, quality and its spread of a row; None where the row has not both."""
    x, y = row.cells[cost.column], row.cells[column.column]
    return None if x is None or y is None else (x.mean, y.mean, y.spread or 0.0)


def draw_line(
    axis: Axes, drawn: Sequence[tuple[tuple[float, float, float], Row]], label: str, index: int, names_points: bool
) -> None:
    x, y, spread = (np.array(values) for values in zip(*(p for p, _ in drawn), strict=True))
    axis.errorbar(
        x, y, spread, label=label, color=f"C{index % 10}", marker=MARKERS[index % len(MARKERS)],
        markersize=5, linewidth=1.3, capsize=2.5, elinewidth=1,
    )  # fmt: skip
    for (cost, quality, _), row in drawn:
        name = ", ".join(row.labels[1:])
        if name and names_points:
            axis.annotate(name, (cost, quality), (4, 4), textcoords="offset points", fontsize=7, color="0.3")


def not_drawn(rows: Sequence[Row], panels: Sequence[Column], layout: Layout) -> str:
    """What the figure does not show, for its foot: no run of a row may go missing unsaid."""
    absent = [row for row in rows if not any(point(row, column, layout.cost) for column in panels)]
    partly = [row for row in rows if row not in absent and not row.ended.isdigit()]
    return listed("not drawn: ", absent, len(panels)) + listed("", partly, len(panels))


def listed(opening: str, rows: Sequence[Row], panels: int) -> str:
    """Rows and how they ended, each ending once, as lines that fit over so many panels."""
    by_ending: dict[str, list[str]] = {}
    for row in rows:
        by_ending.setdefault(row.ended, []).append(", ".join(row.labels))
    lines = [f"{opening}{some_of(names, '; ')}: {ended}" for ended, names in by_ending.items()]
    return "".join(f"\n{textwrap.fill(line, LINE_CHARACTERS * panels)}" for line in lines)


@dataclass(frozen=True)
class Curve:
    """A loss over the runs of a row, at each step that all of them logged. `flops`: spent by then, where logged."""

    steps: list[float]
    flops: list[float]
    mean: list[float]
    lowest: list[float]
    highest: list[float]


@mpl.rc_context(AS_IT_IS)
def loss_curves(curves: Rows, rows: Sequence[Row], layout: Layout) -> Figure | None:
    """Validation loss against steps and against FLOPs, one line a row: mean over seeds, shaded from lowest to highest.

    Training losses instead where nothing was validated (they are under the masks of training: not comparable between
    mask ratios, and the axis says so). None without curves.
    """
    validated = any(number(point, "validation_loss") is not None for point in curves)
    quantity, name = ("validation_loss", "validation loss") if validated else ("train_loss", "training loss, masked")
    by_run: dict[str, Rows] = {}
    for point in curves:
        by_run.setdefault(point["run"], []).append(point)
    found = [(row, row_curve(by_run, row, quantity)) for row in rows]
    lines = [(", ".join(row.labels), curve) for row, curve in found if curve is not None]
    if not lines:
        return None
    lines, told = with_room(lines, 2)
    flops = [
        (label, [x * layout.cost.scale for x in curve.flops], curve)
        for label, curve in lines
        if len(curve.flops) == len(curve.steps)
    ]
    panels = [("steps", [(label, curve.steps, curve) for label, curve in lines]), (layout.cost.title, flops)]
    panels = [(title, drawn) for title, drawn in panels if drawn]
    places = {label: place for place, (label, _) in enumerate(lines)}
    figure, axes = panelled(len(panels))
    for axis, (title, drawn) in zip(axes, panels, strict=True):
        for label, x, curve in drawn:
            index = places[label]
            colour, style = f"C{index % 10}", ("-", "--", ":", "-.")[index // 10 % 4]
            marker = "." if validated else None
            axis.plot(x, curve.mean, label=label, linewidth=1.3, color=colour, linestyle=style, marker=marker)
            axis.fill_between(x, curve.lowest, curve.highest, color=colour, alpha=0.15, linewidth=0)
        axis.set_xlabel(title)
        axis.set_ylabel(name)
        scale(axis, [at for _, x, _ in drawn for at in x], [loss for _, _, curve in drawn for loss in curve.mean])
    told += listed("no curve: ", [row for row, curve in found if curve is None], len(panels))
    finish(figure, axes, layout.title, [label for label, _ in lines], told)
    return figure


def row_curve(curves: Mapping[str, Rows], row: Row, quantity: str) -> Curve | None:
    """A row's curve over its finished runs, from the points of each run; None where they have none."""
    logged: list[dict[int, tuple[float, float | None]]] = []
    for run in row.finished:
        dated = [(number(point, "step"), point) for point in curves.get(run, [])]
        losses = {int(at): (number(point, quantity), number(point, "flops")) for at, point in dated if at is not None}
        logged.append({step: (loss, flops) for step, (loss, flops) in losses.items() if loss is not None})
    steps = sorted(set.intersection(*map(set, logged))) if logged else []
    if not steps:
        return None
    losses = [[points[step][0] for points in logged] for step in steps]
    flops = [logged[0][step][1] for step in steps]
    return Curve(
        [float(step) for step in steps],
        [at for at in flops if at is not None],
        [statistics.fmean(values) for values in losses],
        [min(values) for values in losses],
        [max(values) for values in losses],
    )


def panelled(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels side by side; no global state, so that it also works in a notebook or a thread."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(PANEL_INCHES[0] * count, PANEL_INCHES[1]), dpi=130, layout="constrained")
        return figure, list(np.atleast_1d(figure.subplots(1, count)))


def scale(axis: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """Logarithmic where values span a decade, written as 0.04 and not as 4 x 10^-2; else linear."""
    for values, set_scale, one in ((x, axis.set_xscale, axis.xaxis), (y, axis.set_yscale, axis.yaxis)):
        if min(values) > 0 and max(values) >= 10 * min(values):
            set_scale("log")
            one.set_major_locator(LogLocator(subs=(1, 2, 5)))
            one.set_major_formatter(StrMethodFormatter("{x:.4g}"))
            one.set_minor_formatter(NullFormatter())


def finish(figure: Figure, axes: Sequence[Axes], title: str, lines: Sequence[str], notes: str) -> None:
    """Title, light grid, the lines' names beside the panels where there are several, and small at the foot the notes,
    lines of text."""
    for axis in axes:
        axis.grid(True, which="both", linewidth=0.4, alpha=0.4)
    figure.suptitle(title, fontsize=10)
    if notes:
        figure.supxlabel(notes.strip(), fontsize=6.5, color="0.4")
    if len(lines) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
