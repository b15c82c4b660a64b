"""Judging pictures by prompts: GenEval's rules one by one, and the detector's own accuracy."""

from dataclasses import replace

import pytest
import torch
from detector_accuracy import detector_accuracy

from microdit.data.shapes import COLOURS, DOMAINS, SKILLS, Expectation, ExpectedObject, Prompt, render, sample
from microdit.evaluation.shapes.compositional import (
    compositional_accuracy,
    fulfils,
    relations,
)
from microdit.evaluation.shapes.detector import DetectedObject, detect


def _seen(shape: str, colour: str, x: float = 0.3, y: float = 0.3, size: float = 0.3) -> DetectedObject:
    return DetectedObject(shape, colour, x, y, size, 1.0)


def _prompt(skill: str, *objects: ExpectedObject, relation: str | None = None) -> Prompt:
    return Prompt("", skill, Expectation(objects, relation))


def test_a_single_object_must_have_the_shape_in_any_colour() -> None:
    prompt = _prompt("single_object", ExpectedObject("ring"))
    assert fulfils([_seen("ring", "red"), _seen("cross", "blue")], prompt)
    assert not fulfils([_seen("circle", "red")], prompt)
    assert not fulfils([], prompt)


def test_two_objects_must_both_be_there() -> None:
    prompt = _prompt("two_object", ExpectedObject("ring"), ExpectedObject("cross"))
    assert fulfils([_seen("ring", "red"), _seen("cross", "red")], prompt)
    assert not fulfils([_seen("ring", "red"), _seen("ring", "red")], prompt)


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_counting_needs_the_exact_number(number: int) -> None:
    found = [_seen("circle", "red")] * number + [_seen("square", "red")]
    assert fulfils(found, _prompt("counting", ExpectedObject("circle", None, 3))) == (number == 3)


def test_a_colour_must_be_on_the_shape_that_was_asked_for() -> None:
    prompt = _prompt("colors", ExpectedObject("ring", "red"))
    assert fulfils([_seen("ring", "red")], prompt)
    assert not fulfils([_seen("ring", "blue"), _seen("circle", "red")], prompt)


def test_swapped_colours_fail_attribution() -> None:
    prompt = _prompt("color_attribution", ExpectedObject("ring", "red"), ExpectedObject("cross", "blue"))
    assert fulfils([_seen("cross", "blue"), _seen("ring", "red")], prompt)
    assert not fulfils([_seen("cross", "red"), _seen("ring", "blue")], prompt)


@pytest.mark.parametrize(
    ("x", "y", "holds"),
    [
        (0.2, 0.5, {"left of"}),
        (0.8, 0.55, {"right of"}),
        (0.5, 0.2, {"above"}),
        (0.45, 0.8, {"below"}),
        (0.2, 0.2, {"left of", "above"}),
        (0.55, 0.5, set()),
    ],
)
def test_a_relation_holds_by_the_offset_of_centres_beyond_a_margin(x: float, y: float, holds: set[str]) -> None:
    assert relations(_seen("ring", "red", x, y), _seen("cross", "red", 0.5, 0.5)) == holds


def test_position_asks_for_the_first_object_seen_from_the_second() -> None:
    prompt = _prompt("position", ExpectedObject("ring"), ExpectedObject("cross"), relation="left of")
    assert fulfils([_seen("cross", "red", 0.8), _seen("ring", "red", 0.2)], prompt)
    assert not fulfils([_seen("cross", "red", 0.2), _seen("ring", "red", 0.8)], prompt)


def _images_and_prompts(count: int) -> tuple[torch.Tensor, list[Prompt]]:
    samples = [sample("evaluation", DOMAINS[index % 2], index, seed=4) for index in range(count)]
    pictures = [torch.from_numpy(render(each.scene, 32)).permute(2, 0, 1) / 255 for each in samples]
    return torch.stack(pictures), [each.prompt for each in samples]


def test_true_pictures_score_one_in_every_skill() -> None:
    images, prompts = _images_and_prompts(60)
    accuracy = compositional_accuracy(images, prompts)
    assert list(accuracy) == [*SKILLS, "overall", "single_object_colour"]
    assert min(accuracy.values()) == 1


def test_gray_pictures_score_zero() -> None:
    _, prompts = _images_and_prompts(30)
    assert max(compositional_accuracy(torch.full((30, 3, 32, 32), 0.5), prompts).values()) == 0


def test_overall_is_the_mean_of_the_skills_that_were_asked_for() -> None:
    images, prompts = _images_and_prompts(60)
    chosen = [index for index, prompt in enumerate(prompts) if prompt.skill in ("counting", "two_object")]
    images, prompts = images[chosen], [prompts[index] for index in chosen]
    counting = [index for index, prompt in enumerate(prompts) if prompt.skill == "counting"]
    images[counting[0]] = 0.5
    accuracy = compositional_accuracy(images, prompts)
    assert accuracy.keys() == {"two_object", "counting", "overall"}
    assert accuracy["counting"] == pytest.approx(1 - 1 / len(counting))
    assert accuracy["overall"] == pytest.approx((accuracy["counting"] + 1) / 2)


def test_the_right_colour_on_the_wrong_shape_counts_for_colour_alone() -> None:
    images, prompts = _images_and_prompts(60)
    index = next(index for index, prompt in enumerate(prompts) if prompt.skill == "colors")
    (asked,) = prompts[index].expects.objects
    other = "square" if asked.shape != "square" else "circle"
    changed = replace(prompts[index], expects=Expectation((replace(asked, shape=other),)))
    accuracy = compositional_accuracy(images[index : index + 1], [changed])
    assert accuracy == {"colors": 0.0, "overall": 0.0, "single_object_colour": 1.0}


def test_a_ragged_patch_of_the_right_colour_counts_for_colour_alone() -> None:
    prompt = _prompt("colors", ExpectedObject("circle", "red"))
    ragged = torch.rand(16, 16, generator=torch.Generator().manual_seed(0)).lt(0.6).repeat_interleave(2, 0)
    picture = torch.full((3, 32, 32), 0.95)
    picture[:, 4:28, 4:28] = torch.where(
        ragged.repeat_interleave(2, 1)[4:28, 4:28], torch.tensor([0.87, 0.13, 0.15])[:, None, None], 0.95
    )
    accuracy = compositional_accuracy(picture[None], [prompt])
    assert accuracy == {"colors": 0.0, "overall": 0.0, "single_object_colour": 1.0}


def test_coloured_noise_has_no_colour_but_by_chance() -> None:
    prompts = [_prompt("colors", ExpectedObject("circle", colour)) for colour in COLOURS for _ in range(8)]
    noise = torch.rand(len(prompts), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert compositional_accuracy(noise, prompts)["single_object_colour"] <= 0.25


@pytest.mark.parametrize("count", [0, 2])
def test_images_come_one_by_one_and_must_be_as_many_as_prompts(count: int) -> None:
    images, prompts = _images_and_prompts(3)
    with pytest.raises(ValueError, match="give one image for each"):
        compositional_accuracy(iter(images), prompts[:count])
    with pytest.raises(ValueError, match="give one image for each"):
        compositional_accuracy(iter(images[:count]), prompts)


@pytest.mark.parametrize(("domain", "least"), [("synthetic", 0.97), ("real", 0.90)])
def test_the_detector_can_be_trusted_on_true_scenes(domain: str, least: float) -> None:
    accuracy = detector_accuracy(domain, 150)
    assert accuracy.pop("wrong_prompts") <= 0.02
    assert min(accuracy.values()) >= least


def _near_misses(prompt: Prompt) -> list[Prompt]:
    """Prompts that differ from a true one in one point, and are false."""
    first, *rest = prompt.expects.objects
    expects = prompt.expects
    changed = [
        replace(expects, objects=(replace(first, shape=shape), *rest))
        for shape in ("circle", "square", "triangle", "diamond", "ring", "cross")
        if shape not in {first.shape, *(one.shape for one in rest)}
    ]
    if prompt.skill == "counting":
        changed += [replace(expects, objects=(replace(first, count=first.count + step),)) for step in (-1, 1)]
    if prompt.skill == "colors":
        changed += [
            replace(expects, objects=(replace(first, colour=colour),))
            for colour in ("red", "orange", "yellow", "pink", "purple")
            if colour != first.colour
        ]
    if prompt.skill == "color_attribution":
        swapped = (replace(first, colour=rest[0].colour), replace(rest[0], colour=first.colour))
        changed.append(replace(expects, objects=swapped))
    if expects.relation is not None:
        opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
        changed.append(replace(expects, relation=opposite[expects.relation]))
    return [replace(prompt, expects=each) for each in changed]


def test_prompts_false_in_one_point_are_turned_down() -> None:
    images, prompts = _images_and_prompts(40)
    for image, prompt in zip(images, prompts, strict=True):
        assert fulfils(detect(image), prompt)
        # One verdict from the picture itself; near misses differ in the prompt only.
        assert not any(fulfils(detect(image), false) for false in _near_misses(prompt))
