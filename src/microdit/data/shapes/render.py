"""Scenes drawn by signed distances: the same picture at every resolution, antialiased."""

from functools import lru_cache

import numpy as np
from jaxtyping import Float, UInt8

from microdit.data.shapes.scenes import COLOURS, Background, Light, Scene, SceneObject

_SUPERSAMPLING = 2
_NOISE_CELLS = 32


def signed_distance(
    shape: str, u: Float[np.ndarray, "*#grid"], v: Float[np.ndarray, "*#grid"]
) -> Float[np.ndarray, "*grid"]:
    """Distance to the outline of a `shape` that spans -1..1 both ways (v grows downwards); negative inside.

    Raises ValueError for a shape that has no drawing.
    """
    if shape == "circle":
        return np.hypot(u, v) - 1
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 1
    if shape == "triangle":
        return np.maximum(v - 1, (2 * np.abs(u) - v - 1) / np.sqrt(5, dtype=np.float32))
    if shape == "diamond":
        return (np.abs(u) + np.abs(v) - 1) / np.sqrt(2, dtype=np.float32)
    if shape == "ring":
        return np.abs(np.hypot(u, v) - 0.74) - 0.26
    if shape == "cross":
        across, along = np.abs(u), np.abs(v)
        return np.maximum(np.maximum(across, along) - 1, np.minimum(across, along) - 0.31)
    raise ValueError(f"no drawing for the shape {shape!r}; the shapes are those of microdit.data.shapes.SHAPES")


def coverage(
    shape: str,
    x: Float[np.ndarray, "*#grid"],
    y: Float[np.ndarray, "*#grid"],
    size: float | Float[np.ndarray, "*#grid"],
    pixel: float,
) -> Float[np.ndarray, "*grid"]:
    """How much of each pixel (0..1) a `shape` of width `size` covers; `x`, `y` run from its centre to the pixels'
    centres and `pixel` is a pixel's width, all in one unit of length."""
    radius = size / 2
    return np.clip(0.5 - signed_distance(shape, x / radius, y / radius) * (radius / pixel), 0, 1)


def render(scene: Scene, side_px: int) -> UInt8[np.ndarray, "side side 3"]:
    """The picture of `scene`, `side_px` pixels wide and high, as uint8 RGB. A pure function of its arguments."""
    side = side_px * _SUPERSAMPLING
    position = _pixel_centres(side)
    image = _ground(scene.background, scene.light, side)
    if scene.light is not None:
        for drawn in scene.objects:
            _cast_shadow(image, drawn, scene.light, position)
    paints = _paints(scene)
    for drawn, paint in zip(scene.objects, paints, strict=True):
        _paint_object(image, drawn, paint, scene.light, position)
    image = image.reshape(side_px, _SUPERSAMPLING, side_px, _SUPERSAMPLING, 3).mean((1, 3))
    if scene.light is not None:
        image = _expose(image, scene.light)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


@lru_cache(maxsize=16)
def _pixel_centres(side: int) -> Float[np.ndarray, "side"]:
    return (np.arange(side, dtype=np.float32) + 0.5) / side


@lru_cache(maxsize=128)
def _interpolation(cells: int, side: int) -> Float[np.ndarray, "side cells"]:
    """Linear interpolation from `cells` evenly spaced values to `side` pixels: the identity where the two are equal."""
    at = np.clip(_pixel_centres(side) * cells - 0.5, 0, cells - 1)
    return np.clip(1 - np.abs(at[:, None] - np.arange(cells, dtype=np.float32)), 0, 1)


def _smooth_noise(random: np.random.Generator, rows: int, columns: int, side: int) -> Float[np.ndarray, "side side"]:
    """Uniform noise in -1..1 on a coarse grid, interpolated: what makes a texture the same at every resolution."""
    values = random.random((rows, columns), dtype=np.float32) * 2 - 1
    return _interpolation(rows, side) @ values @ _interpolation(columns, side).T


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def _along(angle: float, position: Float[np.ndarray, "side"]) -> Float[np.ndarray, "side side"]:
    """How far each pixel lies from the middle in the direction `angle`: about -0.5..0.5."""
    centred = position - 0.5
    return np.float32(np.cos(angle)) * centred[None, :] + np.float32(np.sin(angle)) * centred[:, None]


def _ground(background: Background, light: Light | None, side: int) -> Float[np.ndarray, "side side 3"]:
    first = np.asarray(background.colour, dtype=np.float32)
    second = np.asarray(background.second_colour, dtype=np.float32)
    if light is None:
        share = np.clip(_along(background.angle, _pixel_centres(side)) + 0.5, 0, 1)
    else:
        share = np.clip(0.5 + 0.5 * _texture(background, light, side), 0, 1)
    return first + share[..., None] * (second - first)


def _texture(background: Background, light: Light, side: int) -> Float[np.ndarray, "side side"]:
    """The pattern of a surface, about -1..1. Raises ValueError for a surface without one."""
    random = _generator(light.seed)
    position = _pixel_centres(side)
    if background.name == "wood":
        streaks = _smooth_noise(random, 26, 3, side) + 0.6 * _smooth_noise(random, 9, 2, side)
        seams = np.where((position * 3 + 0.35) % 1 < 0.09, np.float32(1.2), np.float32(-0.1))
        boards = streaks + seams[:, None]
        return boards if np.cos(2 * background.angle) > 0 else boards.T
    if background.name == "cloth":
        # One thread over, one thread under: eight threads each way.
        wave = np.sin(position * np.float32(2 * np.pi * 8))
        weave = 0.9 * wave[:, None] * wave[None, :]
        return weave + 0.5 * _smooth_noise(random, 5, 5, side)
    if background.name == "stone":
        veins = np.abs(_smooth_noise(random, 6, 6, side))
        return 1 - 3.2 * veins + 0.5 * _smooth_noise(random, 20, 20, side)
    if background.name == "sand":
        return _smooth_noise(random, 4, 4, side) + 0.9 * _smooth_noise(random, 32, 32, side)
    if background.name == "paper":
        return 1.1 * _smooth_noise(random, 7, 7, side) + 0.4 * _smooth_noise(random, 26, 26, side)
    raise ValueError(f"no texture for the surface {background.name!r}; the surfaces are those of scenes.SURFACES")


def _window(centre: float, reach: float, side: int) -> slice:
    """The pixels within `reach` of `centre` along one axis."""
    return slice(max(0, int((centre - reach) * side) - 1), min(side, int((centre + reach) * side) + 2))


def _cast_shadow(
    image: Float[np.ndarray, "side side 3"], drawn: SceneObject, light: Light, position: Float[np.ndarray, "side"]
) -> None:
    side = len(position)
    x = drawn.x - 0.05 * float(np.cos(light.angle))
    y = drawn.y - 0.05 * float(np.sin(light.angle))
    softness = 0.08
    rows, columns = _window(y, drawn.size / 2 + softness, side), _window(x, drawn.size / 2 + softness, side)
    cover = coverage(drawn.shape, position[None, columns] - x, position[rows, None] - y, drawn.size, softness)
    image[rows, columns] *= (1 - light.shadow * cover * cover * (3 - 2 * cover))[..., None]


def _paints(scene: Scene) -> list[Float[np.ndarray, "3"]]:
    """Each object's colour in 0..1; in a `real` scene a little lighter or darker, and a little off its hue."""
    colours = [np.asarray(COLOURS[drawn.colour], dtype=np.float32) / 255 for drawn in scene.objects]
    if scene.light is None:
        return colours
    random = _generator(scene.light.seed + 1)
    return [
        colour * random.uniform(0.92, 1.04) + random.uniform(-0.02, 0.02, 3).astype(np.float32) for colour in colours
    ]


def _paint_object(
    image: Float[np.ndarray, "side side 3"],
    drawn: SceneObject,
    paint: Float[np.ndarray, "3"],
    light: Light | None,
    position: Float[np.ndarray, "side"],
) -> None:
    side = len(position)
    rows, columns = _window(drawn.y, drawn.size / 2, side), _window(drawn.x, drawn.size / 2, side)
    x, y = position[None, columns] - drawn.x, position[rows, None] - drawn.y
    # The edge is as wide as a final pixel less the supersampling's own blur, which the averaging adds back.
    cover = coverage(drawn.shape, x, y, drawn.size, 1 / side)[..., None]
    if light is None:
        colour = paint
    else:
        towards = (x * np.float32(np.cos(light.angle)) + y * np.float32(np.sin(light.angle))) / (drawn.size / 2)
        colour = paint * (1 + 0.14 * towards[..., None])
    image[rows, columns] += cover * (colour - image[rows, columns])


def _expose(image: Float[np.ndarray, "side side 3"], light: Light) -> Float[np.ndarray, "side side 3"]:
    side = len(image)
    brightness = 1 + 2 * light.strength * _along(light.angle, _pixel_centres(side))
    noise = _generator(light.seed + 2).standard_normal((3, _NOISE_CELLS, _NOISE_CELLS), dtype=np.float32)
    if side != _NOISE_CELLS:
        spread = _interpolation(_NOISE_CELLS, side)
        noise = spread @ noise @ spread.T
    exposed = image * brightness[..., None] * np.asarray(light.tint, dtype=np.float32)
    return exposed + np.float32(light.noise) * noise.transpose(1, 2, 0)
