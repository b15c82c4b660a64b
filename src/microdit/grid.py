"""Pictures with their prompts under them, as one picture."""

import math
import textwrap
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL_PX = 144  # small pictures are enlarged to at least this side
MARGIN_PX = 8
TEXT_PX = 13
LINE_PX = TEXT_PX + 3


class Sheet(NamedTuple):
    """Where everything lies on a sheet: `size` (width, height) in pixels, `factor` that pictures are enlarged by, the
    lines below each of them, and the pixels that the texts of each row take."""

    size: tuple[int, int]
    columns: int
    factor: int
    texts: list[list[str]]
    row_text_px: list[int]


def sheet_of(prompts: Sequence[str], height: int, width: int, columns: int | None = None) -> Sheet:
    """The sheet for pictures of this size with these prompts, before there are any."""
    columns = columns or min(len(prompts), math.ceil(math.sqrt(len(prompts)) * 1.3))
    factor = max(1, math.ceil(CELL_PX / min(height, width)))
    texts = [wrapped(shown_as(prompt), width * factor) for prompt in prompts]
    rows = math.ceil(len(prompts) / columns)
    row_text_px = [max(len(t) for t in texts[r * columns : (r + 1) * columns]) * LINE_PX for r in range(rows)]
    size = (
        columns * (width * factor + MARGIN_PX) + MARGIN_PX,
        rows * (height * factor + MARGIN_PX) + sum(row_text_px) + MARGIN_PX,
    )
    return Sheet(size, columns, factor, texts, row_text_px)


def prompt_grid(images: Float[Tensor, "n 3 h w"], prompts: Sequence[str], columns: int | None = None) -> Image.Image:
    """All pictures in rows, each enlarged by a whole factor to at least 144 px, its prompt wrapped below it."""
    if len(images) != len(prompts) or not prompts:
        raise ValueError(f"a grid needs as many prompts as pictures, at least one: {len(images)} and {len(prompts)}")
    height, width = images.shape[-2:]
    size, columns, factor, texts, row_text_px = sheet_of(prompts, height, width, columns)
    cell_width, picture_height = width * factor + MARGIN_PX, height * factor + MARGIN_PX
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    top = MARGIN_PX
    for row, text_px in enumerate(row_text_px):
        for i in range(row * columns, min((row + 1) * columns, len(images))):
            left = MARGIN_PX + i % columns * cell_width
            enlarged = np.repeat(np.repeat(pixels[i], factor, axis=0), factor, axis=1)
            sheet.paste(Image.fromarray(enlarged), (left, top))
            for k, line in enumerate(texts[i]):
                place = left, top + height * factor + 2 + k * LINE_PX
                draw.text(place, line, fill="black", font=font_for(line)[0])
        top += picture_height + text_px
    return sheet


def wrapped(text: str, width_px: int) -> list[str]:
    """A text in lines of about so many pixels; letters of East Asian scripts are twice as wide as others."""
    wide = any(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return textwrap.wrap(text, max(8, int(width_px / ((1.0 if wide else 0.52) * TEXT_PX))))


def shown_as(text: str) -> str:
    """A text with the letters that no font here can show as escapes, such as \\u732b."""
    missing = font_for(text)[1]
    return "".join(letter.encode("unicode_escape").decode() if letter in missing else letter for letter in text)


def not_shown(texts: Sequence[str]) -> str:
    """The letters that stand on a sheet as escapes, because no font here can show them."""
    return "".join(sorted(set().union(*(font_for(text)[1] for text in texts))))


@lru_cache(maxsize=256)
def font_for(text: str) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, frozenset[str]]:
    """The font that shows most letters of a text, of Pillow's own, those that come with matplotlib and those of this
    machine; and the letters that it cannot show."""
    needed = {letter for letter in text if not letter.isspace()}
    if text.isascii():
        return ImageFont.load_default(TEXT_PX), frozenset()
    best, missing = "", needed
    for path in fonts():
        lacking = needed - letters_of(path)
        if len(lacking) < len(missing):
            best, missing = path, lacking
        if not missing:
            break
    font = ImageFont.truetype(best, TEXT_PX) if best else ImageFont.load_default(TEXT_PX)
    return font, frozenset(missing)


@cache
def fonts() -> list[str]:
    """The files of all fonts that texts may be shown in, the usual one first."""
    from matplotlib import font_manager, get_data_path

    usual = Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return [str(usual), *sorted(set(font_manager.findSystemFonts()) - {str(usual)})]


@cache
def letters_of(path: str) -> frozenset[str]:
    """The letters that a font has; none for a file that is no font."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(path).get_charmap()))
    except (RuntimeError, OSError, ValueError):
        return frozenset()
