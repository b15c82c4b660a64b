"""Pictures of scenes: pure, the same at every resolution, and clearly of one domain or the other."""

from dataclasses import replace

import numpy as np
import pytest

from microdit.data.shapes import COLOURS, DOMAINS, SHAPES, Background, Scene, SceneObject, coverage, render, sample

_GRAY = Background("gray", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.0)


def _pictures(domain: str, side_px: int, count: int = 12) -> list[np.ndarray]:
    return [render(sample("train", domain, index).scene, side_px) for index in range(count)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_scene_always_gives_the_same_bytes(domain: str) -> None:
    for first, second in zip(_pictures(domain, 32), _pictures(domain, 32), strict=True):
        assert first.dtype == np.uint8
        assert first.shape == (32, 32, 3)
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_scene_shows_the_same_picture_at_32_and_64_pixels(domain: str) -> None:
    for small, large in zip(_pictures(domain, 32), _pictures(domain, 64), strict=True):
        halved = large.astype(np.float64).reshape(32, 2, 32, 2, 3).mean((1, 3))
        # The noise of `real` is finer than the halving keeps; the picture under it is not.
        assert np.abs(halved - small).mean() < 6
        assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("colour", list(COLOURS))
def test_an_object_has_its_exact_colour_on_a_plain_ground(shape: str, colour: str) -> None:
    scene = Scene((SceneObject(shape, colour, 0.5, 0.5, 0.5),), _GRAY, None, "synthetic", "colors")
    picture = render(scene, 64)
    painted = (picture == np.array(COLOURS[colour])).all(-1)
    assert painted.sum() > 0.05 * 64 * 64
    rows, columns = np.nonzero((picture != picture[0, 0]).any(-1))
    for indices in (rows, columns):
        assert indices.min() == pytest.approx(16, abs=1)
        assert indices.max() == pytest.approx(47, abs=1)


def test_edges_are_antialiased_and_cover_the_true_area() -> None:
    position = (np.arange(32, dtype=np.float32) + 0.5) - 15.7
    cover = coverage("circle", position[None, :], position[:, None], 11.0, 1.0)
    assert ((cover > 0) & (cover < 1)).any()
    assert cover.sum() == pytest.approx(np.pi * 5.5**2, rel=0.01)


def test_a_drawing_moves_by_parts_of_a_pixel() -> None:
    scene = Scene((SceneObject("square", "red", 0.5, 0.5, 0.3),), _GRAY, None, "synthetic", "colors")
    moved = replace(scene, objects=(replace(scene.objects[0], x=0.5 + 0.25 / 32),))
    difference = render(moved, 32).astype(int) - render(scene, 32)
    assert 0 < np.abs(difference).max() < 128


def test_real_scenes_are_textured_and_synthetic_grounds_are_smooth() -> None:
    def roughness(picture: np.ndarray) -> float:
        return float(np.median(np.abs(np.diff(picture.astype(float).mean(-1), axis=1))))

    assert min(map(roughness, _pictures("real", 32))) > max(map(roughness, _pictures("synthetic", 32)))


def test_an_unknown_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'heart'"):
        coverage("heart", np.zeros(1, np.float32), np.zeros(1, np.float32), 1.0, 0.1)
