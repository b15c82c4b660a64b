"""The small world of the embedded dataset: which shapes, colours and grounds there are, and what one scene holds.

Object colours are saturated and differ in hue; grounds are nearly neutral. So an object can be told from its ground,
and its colour named, under any light the renderer casts.
"""

from dataclasses import dataclass

Rgb = tuple[float, float, float]

SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")

# Red, green and blue in 0..255; neighbouring hues lie at least 24 degrees apart.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 32, 38),
    "orange": (247, 134, 20),
    "yellow": (248, 218, 36),
    "green": (36, 166, 62),
    "cyan": (42, 205, 214),
    "blue": (38, 78, 226),
    "purple": (132, 44, 196),
    "pink": (250, 108, 184),
}

# GenEval's six skills, under GenEval's names.
SKILLS = ("single_object", "two_object", "counting", "colors", "position", "color_attribution")

RELATIONS = ("left of", "right of", "above", "below")
PLACES = ("left", "right", "top", "bottom", "center")
DOMAINS = ("real", "synthetic")
SPLITS = ("train", "validation", "evaluation")

# Surfaces of `real` scenes: their two mingled colours, in 0..1.
SURFACES: dict[str, tuple[Rgb, Rgb]] = {
    "wood": ((0.62, 0.53, 0.44), (0.46, 0.38, 0.31)),
    "stone": ((0.58, 0.59, 0.60), (0.40, 0.41, 0.43)),
    "sand": ((0.80, 0.74, 0.65), (0.70, 0.64, 0.55)),
    "cloth": ((0.36, 0.39, 0.45), (0.25, 0.28, 0.33)),
    "paper": ((0.86, 0.85, 0.82), (0.77, 0.76, 0.74)),
}

# Backdrops of `synthetic` scenes: the two colours that a gradient runs between (a plain backdrop takes the first).
BACKDROPS: dict[str, tuple[tuple[Rgb, Rgb], ...]] = {
    "white": (((0.98, 0.98, 0.98), (0.91, 0.92, 0.94)),),
    "gray": (((0.56, 0.57, 0.58), (0.68, 0.69, 0.70)), ((0.50, 0.50, 0.52), (0.40, 0.41, 0.43))),
    "black": (((0.05, 0.05, 0.06), (0.14, 0.14, 0.16)),),
    "light": (
        ((0.96, 0.93, 0.86), (0.90, 0.87, 0.82)),
        ((0.86, 0.91, 0.96), (0.93, 0.95, 0.97)),
        ((0.88, 0.95, 0.90), (0.94, 0.96, 0.92)),
        ((0.92, 0.89, 0.96), (0.96, 0.94, 0.97)),
    ),
    "dark": (
        ((0.12, 0.14, 0.21), (0.20, 0.22, 0.28)),
        ((0.20, 0.18, 0.17), (0.27, 0.25, 0.24)),
        ((0.13, 0.19, 0.18), (0.21, 0.25, 0.24)),
    ),
}


@dataclass(frozen=True)
class SceneObject:
    """One object: `x`, `y` its bounding box's centre (from the left, from the top) and `size` the box's width, all as
    fractions of the image side."""

    shape: str
    colour: str
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Background:
    """The ground: a surface (`real`, textured) or a backdrop (`synthetic`; a gradient when the two colours differ)."""

    name: str
    colour: Rgb
    second_colour: Rgb
    angle: float
    """Direction of the gradient, or of the surface's grain, in radians."""


@dataclass(frozen=True)
class Light:
    """How a `real` scene is lit and taken; `seed` fixes texture, noise and each object's small change of paint."""

    angle: float
    """Where the light falls from, in radians (0 is the right, a quarter turn is the bottom)."""
    strength: float
    """Brightness gained at the lit edge of the image and lost at the far one, as a share."""
    shadow: float
    """Share of the ground's brightness that a shadow takes."""
    tint: Rgb
    """Gain of each colour channel (the white balance)."""
    noise: float
    """Standard deviation of the noise, image values being 0..1."""
    seed: int


@dataclass(frozen=True)
class Scene:
    """All that `render` needs, and the truth about the picture. `light` is None in the `synthetic` domain."""

    objects: tuple[SceneObject, ...]
    background: Background
    light: Light | None
    domain: str
    skill: str
