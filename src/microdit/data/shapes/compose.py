"""From chance to a scene: what is in it (discrete, what a caption can name), then where exactly it lies."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from microdit.data.shapes.scenes import (
    BACKDROPS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SURFACES,
    Background,
    Light,
    Scene,
    SceneObject,
)

MARGIN = 0.03
"""Least distance of an object from the image's edge, as a fraction of the image side."""
GAP = 0.07
"""Least distance between the bounding boxes of two objects, as a fraction of the image side (2.2 px at 32 px)."""
SPREAD = 0.03
"""Where nothing is said of it, an object lies within this share of the room it has, about the middle: a network learns
outlines long before it learns that they may lie anywhere."""
SMALL = (0.30, 0.32)
LARGE = (0.40, 0.41)
"""Widths that are called small and large, as fractions of the image side; nothing lies between, and little within."""
SMALL_ALONE, LARGE_ALONE = (0.46, 0.48), (0.68, 0.70)
"""The same for an object that is alone. Captions teach most where the object fills much of the picture: its colour and
shape then matter before the noise lets them show."""


@dataclass(frozen=True)
class Thing:
    """An object before it has a place."""

    shape: str
    colour: str
    large: bool


@dataclass(frozen=True)
class Composition:
    """What a scene will hold. `relation` is the first thing's place as seen from the second; `place` is where in the
    image a lone thing lies (None: not said, about the middle); `ground` names the background."""

    domain: str
    skill: str
    things: tuple[Thing, ...]
    relation: str | None
    place: str | None
    ground: str


def pick(random: np.random.Generator, choices: Sequence[str]) -> str:
    """One of `choices`, each as likely."""
    return choices[int(random.random() * len(choices))]


def compose(random: np.random.Generator, domain: str, skill: str) -> Composition:
    """Draw what a scene for `skill` holds. Raises ValueError for an unknown skill."""
    colours = tuple(COLOURS)

    def thing() -> Thing:
        return Thing(pick(random, SHAPES), pick(random, colours), random.random() < 0.5)

    first = thing()
    relation = place = None
    if skill in ("single_object", "colors"):
        things = (first,)
        place = pick(random, PLACES) if random.random() < 0.5 else None
    elif skill == "counting":
        alike = random.random() < 0.6
        others = (thing() for _ in range(1 + int(random.random() * 3)))
        things = (
            first,
            *(Thing(first.shape, first.colour if alike else other.colour, first.large) for other in others),
        )
    elif skill in ("two_object", "position", "color_attribution"):
        second = thing()
        while second.shape == first.shape or (skill == "color_attribution" and second.colour == first.colour):
            second = thing()
        things = (first, second)
        relation = pick(random, RELATIONS) if skill == "position" else None
    else:
        raise ValueError(f"unknown skill {skill!r}; the skills are those of microdit.data.shapes.SKILLS")
    ground = pick(random, tuple(SURFACES if domain == "real" else BACKDROPS))
    return Composition(domain, skill, things, relation, place, ground)


def stage(random: np.random.Generator, composition: Composition) -> Scene:
    """Draw a scene that holds exactly what `composition` says."""
    return Scene(
        objects=_arrange(random, composition),
        background=_background(random, composition),
        light=_light(random) if composition.domain == "real" else None,
        domain=composition.domain,
        skill=composition.skill,
    )


def _arrange(random: np.random.Generator, composition: Composition) -> tuple[SceneObject, ...]:
    things = composition.things
    small, large = (SMALL, LARGE) if len(things) > 1 else (SMALL_ALONE, LARGE_ALONE)
    sizes = [float(random.uniform(*(large if thing.large else small))) for thing in things]
    if len(things) == 1:
        centres = [_centre_at(random, composition.place, sizes[0])]
    else:
        centres = _scatter(random, sizes, composition.relation)
    return tuple(
        SceneObject(thing.shape, thing.colour, x, y, size)
        for thing, (x, y), size in zip(things, centres, sizes, strict=True)
    )


def _centre_at(random: np.random.Generator, place: str | None, size: float) -> tuple[float, float]:
    low, high = MARGIN + size / 2, 1 - MARGIN - size / 2
    # Near the edge, but not at it: off by a little of the way to the middle, however large the object.
    near, middle = low + (0.5 - low) * float(random.uniform(0.1, 0.15)), _about_the_middle(random, low, high)
    if place is None:
        return _about_the_middle(random, low, high), middle
    return {
        "center": (float(random.uniform(0.49, 0.51)), float(random.uniform(0.49, 0.51))),
        "left": (near, middle),
        "right": (1 - near, middle),
        "top": (middle, near),
        "bottom": (middle, 1 - near),
    }[place]


def _about_the_middle(random: np.random.Generator, low: float, high: float) -> float:
    slack = (1 - SPREAD) / 2 * (high - low)
    return float(random.uniform(low + slack, high - slack))


def _scatter(random: np.random.Generator, sizes: list[float], relation: str | None) -> list[tuple[float, float]]:
    """Centres of two to four objects, MARGIN and GAP kept: the image is cut in two bands, a band of two cut again."""
    if relation is None:
        axis = int(random.random() * 2)
        bands = [list(order) for order in _halves(random, len(sizes))]
        return _place_bands(random, sizes, bands, axis)
    axis = 0 if relation in ("left of", "right of") else 1
    bands = [[0], [1]] if relation in ("left of", "above") else [[1], [0]]
    while True:
        centres = _place_bands(random, sizes, bands, axis)
        offset = [abs(centres[0][i] - centres[1][i]) for i in (0, 1)]
        # Nobody should have to ask whether a diagonal is "above" or "left of".
        if offset[1 - axis] <= 0.5 * offset[axis]:
            return centres


def _halves(random: np.random.Generator, count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    options = list(combinations(range(count), count // 2))
    first = options[int(random.random() * len(options))]
    rest = tuple(index for index in range(count) if index not in first)
    return (first, rest) if random.random() < 0.5 else (rest, first)


def _place_bands(
    random: np.random.Generator, sizes: list[float], bands: list[list[int]], axis: int
) -> list[tuple[float, float]]:
    centres: list[list[float]] = [[0.0, 0.0] for _ in sizes]
    for indices, low, high in _cut(random, sizes, bands):
        for index in indices:
            centres[index][axis] = _about_the_middle(random, low + sizes[index] / 2, high - sizes[index] / 2)
        across = _cut(random, sizes, [[i] for i in indices]) if len(indices) == 2 else [(indices, MARGIN, 1 - MARGIN)]
        for (index,), start, end in across:
            centres[index][1 - axis] = _about_the_middle(random, start + sizes[index] / 2, end - sizes[index] / 2)
    return [(x, y) for x, y in centres]


def _cut(
    random: np.random.Generator, sizes: list[float], groups: list[list[int]]
) -> list[tuple[list[int], float, float]]:
    """Each of two groups with the band it gets, wide enough for its largest object, GAP apart."""
    before, after = (max(sizes[index] for index in group) for group in groups)
    cut = _about_the_middle(random, MARGIN + before + GAP / 2, 1 - MARGIN - after - GAP / 2)
    return [(groups[0], MARGIN, cut - GAP / 2), (groups[1], cut + GAP / 2, 1 - MARGIN)]


def _background(random: np.random.Generator, composition: Composition) -> Background:
    name = composition.ground
    angle = float(random.uniform(0, 2 * np.pi))
    if composition.domain == "real":
        first, second = SURFACES[name]
        return Background(name, first, second, angle)
    tones = BACKDROPS[name]
    first, second = tones[int(random.random() * len(tones))]
    return Background(name, first, second if random.random() < 0.5 else first, angle)


def _light(random: np.random.Generator) -> Light:
    warmth = float(random.uniform(-0.03, 0.03))
    return Light(
        angle=float(random.uniform(0, 2 * np.pi)),
        strength=float(random.uniform(0.08, 0.22)),
        shadow=float(random.uniform(0.25, 0.5)),
        tint=(1 + warmth, 1.0, 1 - warmth),
        noise=float(random.uniform(0.012, 0.03)),
        seed=int(random.integers(2**62)),
    )
