"""Reads objects back from pictures of the embedded dataset's world, by measuring: no learned weights.

Grounds there are nearly neutral and objects saturated, so an object is a connected region whose chroma departs from the
ground's. Its colour is its hue; its shape is the one whose drawing fits best, at the region's own area and
centre of mass.
"""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import cast

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage
from torch import Tensor

from microdit.data.shapes import COLOURS, SHAPES, coverage

LEAST_FIT = 0.72
"""A region that no shape fits this well is not an object."""
_LEAST_AREA = 0.012
"""Smallest object, as a share of the image; a quarter of the dataset's smallest object."""
_LARGEST_SIDE = 64
_LEVELS = (0.13, 0.17, 0.21, 0.26, 0.32, 0.40)
"""Chroma differences from the ground at which regions are told apart."""
_SADDLE = 0.55
"""Two peaks are two objects when the way between them falls below this share of the lower one."""


@dataclass(frozen=True)
class DetectedObject:
    """An object read from a picture: `x`, `y` its bounding box's centre and `size` the box's width as fractions of the
    image side; `fit` (up to 1) is how well the drawing of `shape` explains the region."""

    shape: str
    colour: str
    x: float
    y: float
    size: float
    fit: float


def detect(
    image: Float[Tensor, "3 h w"] | UInt8[np.ndarray, "h w 3"], least_fit: float = LEAST_FIT
) -> list[DetectedObject]:
    """The objects in a square picture (floats in 0..1, or uint8), largest first.

    A region counts that some shape explains with a fit of `least_fit`; -inf takes every coloured region, for questions
    that are not about shapes. Raises ValueError for a picture of another layout.
    """
    chroma = _chroma(_as_array(image))
    ground, noise = _ground(chroma)
    relative = chroma - ground
    regions = _regions(np.hypot(*_calm(relative)), noise)
    taken = np.zeros(chroma.shape[1:], dtype=np.int32)
    for number, region in enumerate(regions, start=1):
        taken[region] = number
    found = [_measure(number, regions[number - 1], taken, chroma, relative) for number in range(1, len(regions) + 1)]
    objects = [detected for detected in found if detected is not None and detected.fit >= least_fit]
    return sorted(objects, key=lambda detected: -detected.size)


def _as_array(image: Tensor | np.ndarray) -> Float[np.ndarray, "side side 3"]:
    is_tensor = isinstance(image, Tensor)
    values_fit = image.dtype.is_floating_point if is_tensor else image.dtype == np.uint8
    array = image.movedim(0, -1).detach().cpu().float().numpy() if is_tensor else image.astype(np.float32) / 255
    if not values_fit or array.ndim != 3 or array.shape[2] != 3 or array.shape[0] != array.shape[1]:
        raise ValueError(
            "detect takes a square picture, a float tensor [3, h, w] in 0..1 or a uint8 array [h, w, 3]; "
            f"got {type(image).__name__} of {image.dtype} and shape {tuple(image.shape)}"
        )
    side = array.shape[0]
    if side > _LARGEST_SIDE:
        factor = -(-side // _LARGEST_SIDE)
        side = side // factor * factor
        array = array[:side, :side].reshape(side // factor, factor, side // factor, factor, 3).mean((1, 3))
    return array


def _chroma(image: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "2 h w"]:
    """Red against green, and both against blue: what remains of a colour when its gray is taken away."""
    red, green, blue = image.transpose(2, 0, 1)
    return np.stack([(red - green) / np.sqrt(np.float32(2)), (red + green - 2 * blue) / np.sqrt(np.float32(6))])


def _calm(chroma: Float[np.ndarray, "2 side side"]) -> Float[np.ndarray, "2 side side"]:
    """Less noisy, and still sharp enough to keep neighbours apart: smoothed over half a pixel at 32 px."""
    blur = chroma.shape[1] / 64
    return ndimage.gaussian_filter(chroma, (0, blur, blur), truncate=2)


def _ground(chroma: Float[np.ndarray, "2 side side"]) -> tuple[Float[np.ndarray, "2 1 1"], float]:
    """The ground's chroma and the deviation of its (calmed) noise, from the picture's frame, where objects are rare."""
    width = max(1, chroma.shape[1] // 32)
    frame = np.ones(chroma.shape[1:], dtype=bool)
    frame[width:-width, width:-width] = False
    ground = np.median(chroma[:, frame], axis=1)
    spread = np.median(np.abs(_calm(chroma)[:, frame] - ground[:, None]))
    # The median absolute deviation of a normal variable is 0.674 of its standard deviation.
    return ground[:, None, None], float(spread / 0.674)


def _regions(strength: Float[np.ndarray, "side side"], noise: float) -> list[Bool[np.ndarray, "side side"]]:
    """Connected regions that stand out from the ground; one that falls apart as the level rises is its parts."""
    least = _LEAST_AREA * strength.size
    found: list[np.ndarray] = []
    waiting = [(strength >= max(_LEVELS[0], 4 * noise), 0)]
    while waiting:
        inside, level = waiting.pop()
        for part in _parts(inside, least):
            split = _first_split(strength, part, level, least)
            if split is None:
                found.append(part)
            else:
                # Each pixel of the part goes to its nearest peak.
                pieces, next_level = split
                nearest = np.stack([np.asarray(ndimage.distance_transform_edt(~piece)) for piece in pieces]).argmin(0)
                waiting += [(part & (nearest == index), next_level) for index in range(len(pieces))]
    return found


def _parts(inside: Bool[np.ndarray, "side side"], least: float) -> list[Bool[np.ndarray, "side side"]]:
    labels, count = cast(tuple[np.ndarray, int], ndimage.label(inside))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    return [labels == number for number in range(1, count + 1) if areas[number] >= least]


def _first_split(
    strength: Float[np.ndarray, "side side"], part: Bool[np.ndarray, "side side"], level: int, least: float
) -> tuple[list[Bool[np.ndarray, "side side"]], int] | None:
    for higher in range(level + 1, len(_LEVELS)):
        pieces = _parts(part & (strength >= _LEVELS[higher]), least / 2)
        pieces = [piece for piece in pieces if _LEVELS[higher] <= _SADDLE * np.percentile(strength[piece], 80)]
        if len(pieces) > 1:
            return pieces, higher
    return None


def _measure(
    number: int,
    region: Bool[np.ndarray, "side side"],
    taken: np.ndarray,
    chroma: Float[np.ndarray, "2 side side"],
    relative: Float[np.ndarray, "2 side side"],
) -> DetectedObject | None:
    side = region.shape[0]
    reach = max(2, side // 16)
    rows, columns = (_span(np.any(region, axis), reach, side) for axis in (1, 0))
    window = relative[:, rows, columns]
    inside = region[rows, columns]
    strength = np.hypot(window[0], window[1])
    core = inside & (strength >= 0.75 * np.percentile(strength[inside], 80))
    paint = np.median(window[:, core], axis=1)
    if not paint.any():
        return None  # hues that cancel out: noise, not paint
    # How much of the object each pixel holds, were it a mixture of the object's chroma and the ground's.
    cover = np.tensordot(paint, window, 1) / (paint @ paint)
    near = np.asarray(ndimage.binary_dilation(inside, iterations=reach), dtype=bool) & np.isin(
        taken[rows, columns], (0, number)
    )
    cover = np.where(near, np.minimum(cover, 1), 0)
    area = cover.sum()
    if area < _LEAST_AREA * side * side:
        return None
    y_pixels = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + 0.5
    x_pixels = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] + 0.5
    x_mass, y_mass = (cover * x_pixels).sum() / area, (cover * y_pixels).sum() / area
    colour = _nearest_colour(np.median(chroma[:, rows, columns][:, core], axis=1))
    candidates = []
    for shape, scale in product(SHAPES, (0.94, 1.0, 1.06)):
        share, lift = _geometry(shape)
        size = scale * float(np.sqrt(area / share))
        y_centre = y_mass - lift * size
        candidates.append((shape, size, y_centre, coverage(shape, x_pixels - x_mass, y_pixels - y_centre, size, 1.0)))
    drawn = np.stack([candidate[-1] for candidate in candidates])
    soft = ndimage.gaussian_filter(drawn, (0, reach / 2, reach / 2), truncate=2)
    misfit = np.minimum(np.square(drawn - cover).sum((1, 2)), np.square(soft - cover).sum((1, 2)))
    best = int(np.argmin(misfit))
    shape, size, y_centre, _ = candidates[best]
    fit = 1 - float(misfit[best] / np.square(cover).sum())
    return DetectedObject(shape, colour, float(x_mass) / side, float(y_centre) / side, size / side, fit)


def _span(occupied: Bool[np.ndarray, "side"], reach: int, side: int) -> slice:
    indices = np.flatnonzero(occupied)
    return slice(max(0, int(indices[0]) - reach), min(side, int(indices[-1]) + 1 + reach))


@cache
def _geometry(shape: str) -> tuple[float, float]:
    """The share of its bounding box that a shape fills, and how far below the box's centre its centre of mass lies (in
    heights of the box)."""
    position = (np.arange(256, dtype=np.float32) + 0.5) / 256 - 0.5
    cover = coverage(shape, position[None, :], position[:, None], 1.0, 1 / 256)
    return float(cover.mean()), float((cover * position[:, None]).sum() / cover.sum())


@cache
def _hues() -> tuple[tuple[str, ...], Float[np.ndarray, "colours 2"]]:
    names = tuple(COLOURS)
    paints = np.asarray([[COLOURS[name]] for name in names], dtype=np.float32) / 255
    chroma = _chroma(paints)[:, :, 0].T
    return names, chroma / np.linalg.norm(chroma, axis=1, keepdims=True)


def _nearest_colour(chroma: Float[np.ndarray, "2"]) -> str:
    names, directions = _hues()
    return names[int(np.argmax(directions @ chroma))]
