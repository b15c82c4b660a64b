"""The detector against scenes whose truth is known, at its best and on worse pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from scipy import ndimage

from microdit.data.shapes import COLOURS, DOMAINS, SHAPES, Background, Scene, SceneObject, render, sample
from microdit.evaluation.shapes.detector import detect

_WHITE = Background("white", (0.95, 0.95, 0.95), (0.95, 0.95, 0.95), 0.0)


def _one(shape: str, colour: str, size: float = 0.29) -> Scene:
    return Scene((SceneObject(shape, colour, 0.42, 0.55, size),), _WHITE, None, "synthetic", "colors")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", list(COLOURS))
def test_the_smallest_object_is_read_and_measured(shape: str, colour: str) -> None:
    (found,) = detect(render(_one(shape, colour), 32))
    assert (found.shape, found.colour) == (shape, colour)
    assert (found.x, found.y, found.size) == pytest.approx((0.42, 0.55, 0.29), abs=0.02)


def test_tensors_and_arrays_read_the_same() -> None:
    picture = render(sample("train", "real", 4).scene, 32)
    tensor = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    assert detect(picture) == detect(tensor)


@pytest.mark.parametrize("side_px", [32, 64, 256])
def test_a_scene_reads_the_same_at_every_resolution(side_px: int) -> None:
    scene = sample("train", "synthetic", 12).scene
    found = {(each.shape, each.colour) for each in detect(render(scene, side_px))}
    assert found == {(drawn.shape, drawn.colour) for drawn in scene.objects}


def test_the_largest_object_comes_first() -> None:
    scene = _one("ring", "green", 0.29)
    scene = replace(
        scene, objects=(replace(scene.objects[0], x=0.2, y=0.2), SceneObject("cross", "red", 0.65, 0.7, 0.5))
    )
    assert [found.shape for found in detect(render(scene, 32))] == ["cross", "ring"]


def _blurred_and_noisy(picture: np.ndarray, random: np.random.Generator) -> torch.Tensor:
    noise = ndimage.gaussian_filter(0.06 * random.standard_normal(picture.shape), (0.6, 0.6, 0))
    worse = ndimage.gaussian_filter(picture / 255, (0.8, 0.8, 0)) + noise
    return torch.from_numpy(worse).float().clamp(0, 1).permute(2, 0, 1)


@pytest.mark.parametrize("domain", DOMAINS)
def test_blur_and_noise_leave_nineteen_scenes_in_twenty_readable(domain: str) -> None:
    random = np.random.default_rng(0)
    right = 0
    for index in range(60):
        scene = sample("evaluation", domain, index, seed=2).scene
        found = detect(_blurred_and_noisy(render(scene, 32), random))
        truth = sorted((drawn.shape, drawn.colour) for drawn in scene.objects)
        right += sorted((each.shape, each.colour) for each in found) == truth
    assert right >= 57


@pytest.mark.parametrize("domain", DOMAINS)
def test_empty_grounds_hold_nothing(domain: str) -> None:
    for index in range(40):
        scene = replace(sample("train", domain, index).scene, objects=())
        assert detect(render(scene, 32)) == []


def test_noise_holds_nothing() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        assert detect(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)) == []


@pytest.mark.parametrize(
    "wrong", [torch.zeros(3, 32, 16), torch.zeros(32, 32, 3), torch.zeros(1, 3, 32, 32), torch.zeros(3, 32, 32).byte()]
)
def test_another_layout_is_refused(wrong: torch.Tensor) -> None:
    # Where the annotations are checked (jaxtyping's import hook), they refuse the last three first.
    with pytest.raises((ValueError, TypeCheckError), match=r"square picture|Type-check error"):
        detect(wrong)
