"""The same prompts from the same noise, one column a method: what numbers cannot show."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from microdit.analysis.results import read_run
from microdit.analysis.tables import Row
from microdit.build import SettingsError
from microdit.evaluation.pictures import Pictures, kept_making

PICTURES = "evaluation/skills.tar"
CELL_PX, GAP_PX, TEXT_PX, PROMPT_PX = 112, 6, 12, 190
PROMPTS = 8


def side_by_side(runs: Sequence[Path], rows: Sequence[Row]) -> Image.Image | None:
    """Pictures of the row's first finished run (lowest seed first), prompts spread over all that were judged.

    None where no run kept pictures. Raises SettingsError when runs drew other prompts or with another sampling: side
    by side they would tell nothing.
    """
    folders = {read_run(run)["run"]: run for run in runs}
    found: list[tuple[str, Pictures]] = []
    for row in rows:
        for name in row.finished:
            tar = folders[name] / PICTURES
            if (making := kept_making(tar)) is not None:
                found.append((", ".join(row.labels), Pictures(tar, making, len(making.prompts))))
                break
    if not found:
        return None
    first = found[0][1]
    for _, pictures in found[1:]:
        if (pictures.making.prompts, pictures.making.sampling) != (first.making.prompts, first.making.sampling):
            raise SettingsError(
                f"{pictures.tar} and {first.tar} hold pictures of other prompts or another sampling: evaluate both "
                "runs with the same metrics (python evaluate.py checkpoint=RUN metrics=shapes)"
            )
    prompts = first.making.prompts
    chosen = list(range(0, len(prompts), max(1, len(prompts) // PROMPTS)))[:PROMPTS]
    columns = [(label, (pictures.all()[chosen] * 255).round().byte().numpy()) for label, pictures in found]
    return compose(columns, [prompts[i] for i in chosen])


def compose(columns: Sequence[tuple[str, np.ndarray]], prompts: Sequence[str]) -> Image.Image:
    """One picture: prompts at the left, then a column of pictures [n, 3, h, w] under each label."""
    font = ImageFont.load_default(TEXT_PX)
    side = columns[0][1].shape[-1]
    factor = max(1, round(CELL_PX / side))
    cell, line = side * factor, TEXT_PX + 3
    headings = [textwrap.wrap(label, max(8, int(cell / (0.55 * TEXT_PX)))) for label, _ in columns]
    top = max(map(len, headings)) * line + GAP_PX
    step = cell + GAP_PX
    sheet = Image.new("RGB", (PROMPT_PX + len(columns) * step + GAP_PX, top + len(prompts) * step), "white")
    draw = ImageDraw.Draw(sheet)
    for row, prompt in enumerate(prompts):
        words = textwrap.wrap(prompt, int((PROMPT_PX - 2 * GAP_PX) / (0.52 * TEXT_PX)))
        draw.text((GAP_PX, top + row * step), "\n".join(words), fill="black", font=font)
    for column, (heading, (_, pixels)) in enumerate(zip(headings, columns, strict=True)):
        left = PROMPT_PX + column * step
        draw.text((left, 2), "\n".join(heading), fill="black", font=font)
        for row, picture in enumerate(pixels):
            enlarged = picture.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
            sheet.paste(Image.fromarray(enlarged), (left, top + row * step))
    return sheet
