"""The Frechet distance for shapes: near zero for true scenes, and growing with whatever is wrong."""

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from microdit.evaluation.frechet import frechet_distances
from microdit.evaluation.shapes.features import VERSION, shapes_features
from microdit.evaluation.shapes.frechet import ShapesFrechet
from microdit.evaluation.shapes.scenes import held_out_scenes, rendered
from microdit.evaluation.subject import Subject

COUNT, REFERENCES = 256, 768
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 1.0, "seed": 0}


def true_pictures(domain: str, first: int, count: int) -> torch.Tensor:
    return torch.cat(list(rendered(held_out_scenes([domain], range(first, first + count)), 32)))


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    return true_pictures("synthetic", 0, COUNT)


@pytest.fixture(scope="module")
def distances(scenes):
    """distances({name: pictures}) to other true scenes."""
    references = true_pictures("synthetic", COUNT, REFERENCES)

    def measured(samples: dict[str, torch.Tensor]) -> dict[str, float]:
        batched = {name: images.split(100) for name, images in samples.items()}
        return frechet_distances(shapes_features(), batched, references.split(100))

    return measured


def noisy(images: torch.Tensor, strength: float) -> torch.Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + strength * noise).clamp(0, 1)


def test_it_is_zero_to_itself_and_nearly_so_between_true_scenes(scenes, distances):
    itself = frechet_distances(shapes_features(), {"itself": [scenes]}, [scenes])
    assert itself["itself"] == pytest.approx(0, abs=0.01)
    found = distances({"true": scenes, "noise": torch.rand(scenes.shape)})
    assert found["true"] < 0.04 * found["noise"]


def test_more_true_scenes_are_nearer(scenes, distances):
    found = distances({"few": scenes[:64], "more": scenes[:128], "all": scenes})
    assert found["few"] > found["more"] > found["all"]


def test_it_grows_with_noise(scenes, distances):
    found = distances({str(strength): noisy(scenes, strength) for strength in (0.0, 0.05, 0.1, 0.2, 0.5)})
    assert list(found.values()) == sorted(found.values())
    assert found["0.1"] > 2 * found["0.0"]


def test_it_grows_with_blur(scenes, distances):
    found = distances({"sharp": scenes, **{f"{s}": gaussian_blur(scenes, [7, 7], [s, s]) for s in (0.6, 1.0, 2.0)}})
    assert list(found.values()) == sorted(found.values())
    assert found["2.0"] > 2 * found["sharp"]


def test_it_grows_with_the_share_of_another_domain(scenes, distances):
    real = true_pictures("real", 0, COUNT)
    mixed = {str(share): torch.cat([scenes[share:], real[:share]]) for share in (0, 32, 128, COUNT)}
    found = distances(mixed)
    assert list(found.values()) == sorted(found.values())
    assert found[str(COUNT)] > 5 * found["0"]


def test_it_grows_when_variety_is_lost_though_every_picture_is_true(scenes, distances):
    found = distances({"all": scenes, "half": scenes[:128].repeat(2, 1, 1, 1), "few": scenes[:8].repeat(32, 1, 1, 1)})
    assert found["all"] < found["half"] < found["few"]
    assert found["few"] > 10 * found["all"]


def test_the_metric_names_its_features_and_what_a_perfect_model_would_reach(pipeline, tmp_path):
    metric = ShapesFrechet(["synthetic"], count=24, reference_count=128, sampling=SAMPLING)
    numbers, shown = metric.evaluate(Subject(pipeline, tmp_path))
    assert numbers.keys() == {f"frechet_{VERSION}/distance", f"frechet_{VERSION}/true_scenes"}
    assert numbers[f"frechet_{VERSION}/distance"] > 1.5 * numbers[f"frechet_{VERSION}/true_scenes"] > 0
    assert shown.size[0] > 144
