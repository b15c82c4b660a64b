"""What every drawn scene keeps: nothing overlaps, nothing is cut off, and the named things differ where they must."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from microdit.data.shapes import COLOURS, DOMAINS, SHAPES, SKILLS, Scene, sample


def _scenes(domain: str, count: int = 400) -> list[Scene]:
    return [sample("train", domain, index, seed=3).scene for index in range(count)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_objects_lie_inside_the_image_and_keep_two_pixels_apart(domain: str) -> None:
    for scene in _scenes(domain):
        for drawn in scene.objects:
            assert drawn.size * 32 > 9
            for centre in (drawn.x, drawn.y):
                assert drawn.size / 2 + 0.029 < centre < 1 - drawn.size / 2 - 0.029
        for first, second in combinations(scene.objects, 2):
            gap = max(abs(first.x - second.x), abs(first.y - second.y)) - (first.size + second.size) / 2
            assert gap * 32 > 2


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_skill_shape_colour_and_number_comes_up(domain: str) -> None:
    scenes = _scenes(domain)
    assert {scene.skill for scene in scenes} == set(SKILLS)
    assert min(Counter(scene.skill for scene in scenes).values()) > 400 * 0.12 * 0.6
    assert {drawn.shape for scene in scenes for drawn in scene.objects} == set(SHAPES)
    assert {drawn.colour for scene in scenes for drawn in scene.objects} == set(COLOURS)
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}


@pytest.mark.parametrize("domain", DOMAINS)
def test_grounds_are_far_less_saturated_than_any_object(domain: str) -> None:
    weakest_object = min(max(rgb) - min(rgb) for rgb in COLOURS.values()) / 255
    for scene in _scenes(domain):
        for tone in (scene.background.colour, scene.background.second_colour):
            assert max(tone) - min(tone) < 0.4 * weakest_object


def test_object_colours_lie_at_least_20_degrees_of_hue_apart() -> None:
    rgb = np.array(list(COLOURS.values()), dtype=float)
    red, green, blue = rgb.T
    hue = np.degrees(np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue))
    apart = np.abs((hue[:, None] - hue[None, :] + 180) % 360 - 180)[~np.eye(len(hue), dtype=bool)]
    assert apart.min() > 20


@pytest.mark.parametrize("domain", DOMAINS)
def test_only_real_scenes_are_lit(domain: str) -> None:
    assert all((scene.light is not None) == (domain == "real") for scene in _scenes(domain, 20))
