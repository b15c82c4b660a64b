"""Pictures with their prompts under them, as one picture."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

CELL_PX = 144  # small pictures are enlarged to at least this side
MARGIN_PX = 8
TEXT_PX = 13


def prompt_grid(images: Float[Tensor, "n 3 h w"], prompts: Sequence[str], columns: int | None = None) -> Image.Image:
    """All pictures in rows, each enlarged by a whole factor to at least 144 px, its prompt wrapped below it."""
    if len(images) != len(prompts) or not prompts:
        raise ValueError(f"a grid needs as many prompts as pictures, at least one: {len(images)} and {len(prompts)}")
    columns = columns or min(len(images), math.ceil(math.sqrt(len(images)) * 1.3))
    height, width = images.shape[-2:]
    factor = max(1, math.ceil(CELL_PX / min(height, width)))
    font = ImageFont.load_default(TEXT_PX)
    characters = max(8, int(width * factor / (0.52 * TEXT_PX)))
    texts = [textwrap.wrap(prompt, characters) for prompt in prompts]
    line_px = TEXT_PX + 3
    rows = math.ceil(len(images) / columns)
    row_text_px = [max(len(t) for t in texts[r * columns : (r + 1) * columns]) * line_px for r in range(rows)]
    cell_width, picture_height = width * factor + MARGIN_PX, height * factor + MARGIN_PX
    sheet = Image.new(
        "RGB", (columns * cell_width + MARGIN_PX, rows * picture_height + sum(row_text_px) + MARGIN_PX), "white"
    )
    draw = ImageDraw.Draw(sheet)
    pixels = (images.detach().float().cpu().clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    top = MARGIN_PX
    for row in range(rows):
        for column in range(columns):
            i = row * columns + column
            if i >= len(images):
                break
            left = MARGIN_PX + column * cell_width
            enlarged = np.repeat(np.repeat(pixels[i], factor, axis=0), factor, axis=1)
            sheet.paste(Image.fromarray(enlarged), (left, top))
            for k, line in enumerate(texts[i]):
                draw.text((left, top + height * factor + 2 + k * line_px), line, fill="black", font=font)
        top += picture_height + row_text_px[row]
    return sheet
