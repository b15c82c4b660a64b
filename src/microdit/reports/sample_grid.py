"""The same prompts from the same noise, one column a method: what numbers cannot show."""

import logging
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from microdit.evaluation.pictures import Pictures, kept_making
from microdit.kinds import SettingsError
from microdit.progress import on_one_line
from microdit.reports.layout import short
from microdit.reports.results import read_run
from microdit.reports.tables import Row
from microdit.runs.folder import JUDGED_PICTURES

CELL_PX, GAP_PX, TEXT_PX, PROMPT_PX = 112, 6, 12, 190
PROMPTS, MOST_COLUMNS = 8, 40
log = logging.getLogger(__name__)


def side_by_side(runs: Sequence[Path], rows: Sequence[Row]) -> Image.Image | None:
    """Pictures of the row's first finished run (lowest seed first), prompts spread over all that were judged; a row
    without any has a column that says so. Of the first MOST_COLUMNS rows, where there are more.

    None where no run kept pictures. Raises SettingsError when runs drew other prompts or with another sampling: side
    by side they would tell nothing.
    """
    folders = {read_run(run)["run"]: run for run in runs}
    if len(rows) > MOST_COLUMNS:
        log.warning("samples.png has room for %d rows and shows the first of %d", MOST_COLUMNS, len(rows))
        rows = rows[:MOST_COLUMNS]
    kept = [kept_pictures([folders[name] for name in row.finished]) for row in rows]
    found = [pictures for pictures in kept if pictures is not None]
    if not found:
        return None
    first = found[0]
    for pictures in found[1:]:
        if (pictures.making.prompts, pictures.making.sampling) != (first.making.prompts, first.making.sampling):
            raise SettingsError(
                f"{pictures.tar} and {first.tar} hold pictures of other prompts or another sampling: evaluate both "
                "runs with the same metrics (python evaluate.py checkpoint=RUN metrics=shapes)"
            )
    prompts = first.making.prompts
    chosen = list(range(0, len(prompts), max(1, len(prompts) // PROMPTS)))[:PROMPTS]
    pixels = [None if pictures is None else pictures.to_show(chosen) for pictures in kept]
    labels = [
        short(", ".join(row.labels))
        + ("" if shown is not None else ": no pictures" if row.finished else f": {row.ended}")
        for row, shown in zip(rows, pixels, strict=True)
    ]
    return compose(labels, pixels, [prompts[i] for i in chosen])


def kept_pictures(runs: Sequence[Path]) -> Pictures | None:
    """All pictures of the first of these runs that kept some."""
    for run in runs:
        if (making := kept_making(run / JUDGED_PICTURES)) is not None:
            return Pictures(run / JUDGED_PICTURES, making, len(making.prompts))
    return None


def compose(labels: Sequence[str], columns: Sequence[np.ndarray | None], prompts: Sequence[str]) -> Image.Image:
    """One picture: prompts at the left, then a column of pictures [n, 3, h, w] under each label, or an empty one."""
    font = ImageFont.load_default(TEXT_PX)
    side = max(max(pixels.shape[-2:]) for pixels in columns if pixels is not None)
    cell, line = side * max(1, round(CELL_PX / side)), TEXT_PX + 3
    headings = [textwrap.wrap(label, max(8, int(cell / (0.55 * TEXT_PX)))) for label in labels]
    top = max(map(len, headings)) * line + GAP_PX
    step = cell + GAP_PX
    sheet = Image.new("RGB", (PROMPT_PX + len(columns) * step + GAP_PX, top + len(prompts) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(prompts):
        words = textwrap.wrap(short(on_one_line(prompt)), int((PROMPT_PX - 2 * GAP_PX) / (0.52 * TEXT_PX)))
        draw.text((GAP_PX, top + row * step), "\n".join(words), fill="black", font=font)
    for column, (heading, pixels) in enumerate(zip(headings, columns, strict=True)):
        left = PROMPT_PX + column * step
        draw.text((left, 2), "\n".join(heading), fill="black", font=font)
        for row, picture in enumerate(() if pixels is None else pixels):
            factor = cell // max(picture.shape[1:])
            enlarged = picture.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
            sheet.paste(Image.fromarray(enlarged), (left, top + row * step))
    return sheet
