"""The loss by noise level: checked against its closed form for a network that says nothing."""

import pytest
import torch

from microdit.data.shapes import split_of
from microdit.evaluation.shapes.loss import ShapesDenoisingLoss, loss_by_noise_level
from microdit.evaluation.shapes.scenes import held_out_scenes, rendered
from microdit.evaluation.subject import Subject

LEVELS = [0.1, 1.0, 10.0]


def metric(**changes) -> ShapesDenoisingLoss:
    return ShapesDenoisingLoss(**{"domains": ["synthetic"], "count": 80, "noise_levels": LEVELS, "seed": 0, **changes})


def test_scenes_are_held_out_and_the_domains_take_turns():
    scenes = held_out_scenes(["real", "synthetic"], range(10))
    assert all(split_of(each.caption) == "evaluation" for each in scenes)
    assert [each.scene.domain for each in scenes] == ["real", "synthetic"] * 5
    assert len({each.caption for each in scenes}) > 5


def test_a_network_that_says_nothing_has_the_loss_of_shrinking_alone(make_pipeline, tmp_path):
    """F = 0 makes D = c_skip x, and the error c_skip (x0 + sigma n) - x0 = c_skip sigma n - (1 - c_skip) x0."""
    pipeline = make_pipeline(fresh=True)
    numbers, shown = metric().evaluate(Subject(pipeline, tmp_path))
    assert shown is None
    power = (
        torch.cat(list(rendered(held_out_scenes(["synthetic"], range(80)), 16))).mul(2).sub(1).square().mean().item()
    )
    data = pipeline.objective.sigma_data
    for sigma in LEVELS:
        skip = data**2 / (sigma**2 + data**2)
        error = (skip * sigma) ** 2 + (1 - skip) ** 2 * power
        expected = error * (sigma**2 + data**2) / (sigma * data) ** 2
        assert numbers[f"denoising_loss/sigma_{sigma:g}"] == pytest.approx(expected, rel=0.02)
    *by_level, mean = numbers.values()
    assert mean == pytest.approx(sum(by_level) / 3)


def test_the_same_noise_every_time_and_another_with_another_seed(pipeline, tmp_path):
    subject = Subject(pipeline, tmp_path)
    first = metric().evaluate(subject)[0]
    assert metric().evaluate(subject)[0] == first
    other = metric(seed=1).evaluate(subject)[0]
    assert all(first[name] != other[name] for name in first)


def test_a_noise_level_does_not_depend_on_the_others_asked_for(pipeline):
    scenes = metric().scenes(pipeline)
    together = loss_by_noise_level(pipeline, scenes, LEVELS, seed=0)
    alone = loss_by_noise_level(pipeline, scenes, [1.0], seed=0)
    assert alone[1.0] == together[1.0]


def test_captions_matter(pipeline):
    scenes = metric(count=16).scenes(pipeline)
    shuffled = [(images, captions[::-1]) for images, captions in scenes]
    assert loss_by_noise_level(pipeline, scenes, [1.0], 0) != loss_by_noise_level(pipeline, shuffled, [1.0], 0)


def test_evaluation_leaves_the_network_in_the_mode_it_was_in(pipeline):
    pipeline.dit.train()
    loss_by_noise_level(pipeline, metric(count=4).scenes(pipeline), [1.0], 0)
    assert pipeline.dit.training
