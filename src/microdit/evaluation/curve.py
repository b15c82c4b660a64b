"""Numbers that were measured at several guidance scales, as a table and as curves."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from microdit.files import alone_in, replacing

PANEL_INCHES, COLUMNS = (4.2, 3.2), 3
SWEPT = "guidance_scale"


class Point(NamedTuple):
    """A number measured at a guidance scale; `line` is its name without it, such as "fid/clean@raw"."""

    line: str
    scale: float
    value: float


def points_of(numbers: Mapping[str, float], scale: float) -> list[Point]:
    """Numbers under the names they have in result.json, which say the scale where it is not the metric's own."""
    found = []
    for name, value in numbers.items():
        base, _, apart = name.partition("@")
        others = [part for part in apart.split(",") if part and not part.startswith(f"{SWEPT}=")]
        found.append(Point("@".join([base, *([",".join(others)] if others else [])]), scale, value))
    return found


def write_curves(folder: Path, points: Sequence[Point]) -> Path:
    """FOLDER/guidance.csv and FOLDER/guidance.png, a panel a number, a line for each set of weights; the picture's
    path. Numbers that were measured once have no curve."""
    times = Counter(point.line for point in points)
    points = [point for point in points if times[point.line] > 1]
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        with replacing(folder / "guidance.csv", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["number", SWEPT, "value"])
            table.writerows(points)
        with replacing(folder / "guidance.png", "wb") as file:
            drawn(points).savefig(file, format="png", dpi=120)
    return folder / "guidance.png"


def drawn(points: Sequence[Point]) -> Figure:
    panels = list(dict.fromkeys(point.line.partition("@")[0] for point in points))
    columns, rows = min(COLUMNS, len(panels)), -(-len(panels) // COLUMNS)
    figure = Figure((PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        for line in dict.fromkeys(point.line for point in points if point.line.partition("@")[0] == panel):
            mine = sorted((point.scale, point.value) for point in points if point.line == line)
            label = line.partition("@")[2] or "ema"
            axis.plot(*zip(*mine, strict=True), marker="o", label=label)
        axis.set_title(panel, fontsize=9, parse_math=False)
        axis.set_xlabel("guidance scale")
        if len(axis.lines) > 1:
            axis.legend(fontsize=8)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return figure
