"""A sheet of pictures with their captions, as they would be trained on, before anything is encoded."""

import math
from collections import Counter
from itertools import islice

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from microdit.data.prepare.choices import background_of, views_of, with_chosen_captions
from microdit.data.prepare.plan import Recipe
from microdit.data.sources.captioned import CaptionedImage, Ignored, Source
from microdit.data.sources.images import MAX_PIXELS, BrokenImageError, FilteredImageError, square_views
from microdit.grid import prompt_grid
from microdit.kinds import SettingsError

SHOWN, SHARDS, READ = 100, 20, 5  # on a sheet; input shards they are from, at most; times as many are read
LARGEST_PX = 256  # that a picture has on the sheet


def sheet_of(source: Source, recipe: Recipe) -> tuple[Image.Image, str]:
    """About 100 samples from all over a source, each with its first caption and how many more it has, and what became
    of what was looked at. SettingsError where there is nothing to see."""
    names = source.shards()
    chosen = np.unique(np.linspace(0, len(names) - 1, SHARDS).round().astype(int)).tolist()
    each, left_out, squares, texts = -(-SHOWN // len(chosen)), Counter(), [], []
    side = min(LARGEST_PX, max(recipe.resolutions_px))
    for shard in chosen:
        found = list(islice(source.read(shard), each * READ))
        order = np.random.default_rng(shard).permutation(len(found))
        taken = 0
        for item in (found[place] for place in order):
            if taken == each:
                break
            if isinstance(item, CaptionedImage):
                item = with_chosen_captions(item, recipe.clean_captions, recipe.captions)
            if not isinstance(item, CaptionedImage):
                left_out["ignored" if isinstance(item, Ignored) else getattr(item, "reason", "encoded already")] += 1
                continue
            views = views_of(item.key, recipe.crops, recipe.flips)
            view, background = views[len(squares) % len(views)], background_of(item.key, recipe.transparency)
            try:
                ratio = recipe.aspect_ratio
                square = square_views(item.image, [side], recipe.smallest_side, MAX_PIXELS, [view], background, ratio)
            except (BrokenImageError, FilteredImageError) as error:
                left_out[str(error)] += 1
                continue
            squares.append(on_canvas(square[side][0], math.ceil(side * math.sqrt(ratio))))
            more = f" (and {len(item.captions) - 1} more)" if len(item.captions) > 1 else ""
            texts.append(f"{item.captions[0]}{more}")
            taken += 1
    if not squares:
        reasons = "; ".join(reason for reason, _ in left_out.most_common(3))
        raise SettingsError(f"there is nothing to look at: {reasons or 'the source is empty'}")
    pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255
    told = [f"{len(squares)} samples from {len(chosen)} of {len(names)} input shards"]
    told += [f"  {count} left out: {reason}" for reason, count in left_out.most_common(5)]
    return prompt_grid(pixels, texts), "\n".join(told)


def on_canvas(picture: UInt8[np.ndarray, "h w 3"], side_px: int) -> UInt8[np.ndarray, "side side 3"]:
    """A picture in the middle of a grey square."""
    canvas = np.full((side_px, side_px, 3), 128, np.uint8)
    height, width = picture.shape[:2]
    top, left = (side_px - height) // 2, (side_px - width) // 2
    canvas[top : top + height, left : left + width] = picture
    return canvas
