"""GenEval's rules on objects seen by hand: each of them both ways. And on our own scenes, beside our own detector."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from microdit.data.shapes import DOMAINS, Prompt, Scene, render, sample
from microdit.evaluation.geneval.prompts import MOST_A_CLASS
from microdit.evaluation.geneval.rules import Detection, considered, judge, relations
from microdit.evaluation.shapes.compositional import fulfils
from microdit.evaluation.shapes.detector import detect

LEFT, RIGHT, MIDDLE = (0, 40, 20, 60), (80, 40, 100, 60), (40, 40, 60, 60)
TOP, BOTTOM = (40, 0, 60, 20), (40, 80, 60, 100)


def seen(name: str, score: float = 0.95, box: tuple = MIDDLE, colour: str = "red") -> tuple[Detection, str]:
    """An object, and the colour that it will be named by."""
    return Detection(name, score, tuple(map(float, box))), colour


def asks(tag: str, *include: dict[str, Any], exclude: list[dict[str, Any]] | None = None) -> Any:
    return {"tag": tag, "include": list(include), "exclude": exclude or [], "prompt": "a photo"}


def some(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def verdict(sample: Any, objects: list[tuple[Detection, str]]):
    paint = {id(one): colour for one, colour in objects}
    found = considered([one for one, _ in objects], sample["tag"])
    return judge(sample, found, lambda chosen, name: [paint[id(one)] for one in chosen])


DOG = asks("single_object", some("dog"))
DOG_AND_CAT = asks("two_object", some("dog"), some("cat"))
TWO_DOGS = asks("counting", some("dog", 2), exclude=[some("dog", 3)])
FOUR_DOGS = asks("counting", some("dog", 4), exclude=[some("dog", 5)])
BLUE_DOG = asks("colors", some("dog", color="blue"))
BLUE_DOG_RED_CAT = asks("color_attr", some("dog", color="blue"), some("cat", color="red"))
DOG_LEFT_OF_CAT = asks("position", some("cat"), some("dog", position=["left of", 0]))
DOG_ABOVE_CAT = asks("position", some("cat"), some("dog", position=["above", 0]))
TWO_BLUE_DOGS = asks("colors", some("dog", 2, color="blue"))
DOGS_LEFT_OF_CATS = asks("position", some("cat", 2), some("dog", 2, position=["left of", 0]))
BLUE_DOG_LEFT_OF_RED_CAT = asks(
    "position", some("cat", color="red"), some("dog", color="blue", position=["left of", 0])
)
MOUSE = asks("single_object", some("computer mouse"))

CASES: list[tuple[str, Any, list[tuple[Detection, str]], bool]] = [
    ("an object is there", DOG, [seen("dog")], True),
    ("nothing is there", DOG, [], False),
    ("something else is there", DOG, [seen("cat")], False),
    ("something else is there as well", DOG, [seen("dog"), seen("cat")], True),
    ("one more of a single object does no harm", DOG, [seen("dog"), seen("dog")], True),
    ("above the threshold", DOG, [seen("dog", 0.301)], True),
    ("at the threshold", DOG, [seen("dog", 0.3)], False),
    ("below the threshold", DOG, [seen("dog", 0.299)], False),
    ("a computer mouse", MOUSE, [seen("computer mouse")], True),
    ("a mouse by COCO's name", MOUSE, [seen("mouse")], False),
    ("both objects", DOG_AND_CAT, [seen("cat"), seen("dog")], True),
    ("the first alone", DOG_AND_CAT, [seen("dog")], False),
    ("the second alone", DOG_AND_CAT, [seen("cat")], False),
    ("two of one", DOG_AND_CAT, [seen("dog"), seen("dog")], False),
    ("both in one place: overlapping objects stay", DOG_AND_CAT, [seen("dog", 0.9), seen("cat", 0.4)], True),
    ("one of both unsure", DOG_AND_CAT, [seen("dog"), seen("cat", 0.2)], False),
    ("as many as asked for", TWO_DOGS, [seen("dog"), seen("dog")], True),
    ("too few", TWO_DOGS, [seen("dog")], False),
    ("one too many", TWO_DOGS, [seen("dog")] * 3, False),
    ("many too many", TWO_DOGS, [seen("dog")] * 9, False),
    ("none to count", TWO_DOGS, [seen("cat"), seen("cat")], False),
    ("two in one place are two", TWO_DOGS, [seen("dog", 0.99, MIDDLE), seen("dog", 0.91, MIDDLE)], True),
    ("counted above 0.9", TWO_DOGS, [seen("dog", 0.901), seen("dog", 0.901)], True),
    ("not counted at 0.9", TWO_DOGS, [seen("dog", 0.95), seen("dog", 0.9)], False),
    ("not counted at what would do elsewhere", TWO_DOGS, [seen("dog", 0.95), seen("dog", 0.5)], False),
    ("an unsure third is not one too many", TWO_DOGS, [seen("dog"), seen("dog"), seen("dog", 0.89)], True),
    ("a sure third is", TWO_DOGS, [seen("dog"), seen("dog"), seen("dog", 0.91)], False),
    ("others are not counted", TWO_DOGS, [seen("dog"), seen("dog"), seen("cat"), seen("cat")], True),
    ("four of four", FOUR_DOGS, [seen("dog")] * 4, True),
    ("three of four", FOUR_DOGS, [seen("dog")] * 3, False),
    ("five of four", FOUR_DOGS, [seen("dog")] * 5, False),
    ("its colour", BLUE_DOG, [seen("dog", colour="blue")], True),
    ("another colour", BLUE_DOG, [seen("dog", colour="green")], False),
    ("the colour on another object", BLUE_DOG, [seen("dog"), seen("cat", colour="blue")], False),
    ("the surest has the colour", BLUE_DOG, [seen("dog", 0.5), seen("dog", 0.9, colour="blue")], True),
    ("a less sure one has the colour", BLUE_DOG, [seen("dog", 0.9), seen("dog", 0.5, colour="blue")], False),
    ("nothing to have a colour", BLUE_DOG, [], False),
    ("colours need 0.3, not 0.9", BLUE_DOG, [seen("dog", 0.4, colour="blue")], True),
    ("each has its colour", TWO_BLUE_DOGS, [seen("dog", colour="blue"), seen("dog", colour="blue")], True),
    ("one has not", TWO_BLUE_DOGS, [seen("dog", colour="blue"), seen("dog", colour="pink")], False),
    (
        "the two surest have it",
        TWO_BLUE_DOGS,
        [seen("dog", 0.4), seen("dog", 0.9, colour="blue"), seen("dog", 0.8, colour="blue")],
        True,
    ),
    (
        "one of the two surest has not",
        TWO_BLUE_DOGS,
        [seen("dog", 0.9), seen("dog", 0.8, colour="blue"), seen("dog", 0.7, colour="blue")],
        False,
    ),
    ("each its own colour", BLUE_DOG_RED_CAT, [seen("dog", colour="blue"), seen("cat", colour="red")], True),
    ("colours swapped", BLUE_DOG_RED_CAT, [seen("dog", colour="red"), seen("cat", colour="blue")], False),
    ("the first colour on both", BLUE_DOG_RED_CAT, [seen("dog", colour="blue"), seen("cat", colour="blue")], False),
    ("the second colour on both", BLUE_DOG_RED_CAT, [seen("dog", colour="red"), seen("cat", colour="red")], False),
    ("one coloured object alone", BLUE_DOG_RED_CAT, [seen("dog", colour="blue")], False),
    ("left of", DOG_LEFT_OF_CAT, [seen("dog", box=LEFT), seen("cat", box=RIGHT)], True),
    ("right of instead", DOG_LEFT_OF_CAT, [seen("dog", box=RIGHT), seen("cat", box=LEFT)], False),
    ("above instead", DOG_LEFT_OF_CAT, [seen("dog", box=TOP), seen("cat", box=BOTTOM)], False),
    ("in the same place", DOG_LEFT_OF_CAT, [seen("dog"), seen("cat")], False),
    ("the target is not there", DOG_LEFT_OF_CAT, [seen("dog", box=LEFT)], False),
    ("nothing to be left of it", DOG_LEFT_OF_CAT, [seen("cat", box=RIGHT)], False),
    ("above", DOG_ABOVE_CAT, [seen("dog", box=TOP), seen("cat", box=BOTTOM)], True),
    ("below instead", DOG_ABOVE_CAT, [seen("dog", box=BOTTOM), seen("cat", box=TOP)], False),
    (
        "the surest of each is where it should be",
        DOG_LEFT_OF_CAT,
        [seen("dog", 0.9, LEFT), seen("dog", 0.5, RIGHT), seen("cat", 0.9, MIDDLE), seen("cat", 0.4, LEFT)],
        True,
    ),
    (
        "only a less sure one is",
        DOG_LEFT_OF_CAT,
        [seen("dog", 0.5, LEFT), seen("dog", 0.9, RIGHT), seen("cat", 0.9, MIDDLE)],
        False,
    ),
    (
        "only seen from a less sure target",
        DOG_LEFT_OF_CAT,
        [seen("dog", 0.9, MIDDLE), seen("cat", 0.9, LEFT), seen("cat", 0.5, RIGHT)],
        False,
    ),
    (
        "all of them from all targets",
        DOGS_LEFT_OF_CATS,
        [seen("dog", box=LEFT), seen("dog", box=LEFT), seen("cat", box=RIGHT), seen("cat", box=MIDDLE)],
        True,
    ),
    (
        "one of them not from one target",
        DOGS_LEFT_OF_CATS,
        [seen("dog", box=LEFT), seen("dog", box=MIDDLE), seen("cat", box=RIGHT), seen("cat", box=MIDDLE)],
        False,
    ),
    (
        "place and colours",
        BLUE_DOG_LEFT_OF_RED_CAT,
        [seen("dog", box=LEFT, colour="blue"), seen("cat", box=RIGHT, colour="red")],
        True,
    ),
    (
        "the place, but not of an object of that colour",
        BLUE_DOG_LEFT_OF_RED_CAT,
        [seen("dog", box=LEFT, colour="pink"), seen("cat", box=RIGHT, colour="red")],
        False,
    ),
    (
        "the place, but the target failed",
        BLUE_DOG_LEFT_OF_RED_CAT,
        [seen("dog", box=LEFT, colour="blue"), seen("cat", box=RIGHT, colour="pink")],
        False,
    ),
]


@pytest.mark.parametrize(("asked", "objects", "right"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_picture_is_right_or_wrong(asked, objects, right):
    assert verdict(asked, objects).correct == right


@pytest.mark.parametrize(
    ("box", "holds"),
    [
        # Seen from the square of 20 px in the middle; the margin is 0.1 * (20 + 20) = 4 px on each axis.
        ((0, 40, 20, 60), {"left of"}),
        ((80, 40, 100, 60), {"right of"}),
        ((40, 0, 60, 20), {"above"}),
        ((40, 80, 60, 100), {"below"}),
        ((0, 0, 20, 20), {"left of", "above"}),  # (40 - 4) / 56.6 = 0.64 along both
        ((80, 80, 100, 100), {"right of", "below"}),
        ((40, 40, 60, 60), set()),
        ((44, 40, 64, 60), set()),  # within the margin
        ((48, 40, 68, 60), set()),  # (8 - 4) / 8 is not more than a half
        ((49, 40, 69, 60), {"right of"}),  # (9 - 4) / 9 is
        ((60, 60, 80, 80), {"right of", "below"}),  # (20 - 4) / 28.3 = 0.57
        ((53, 53, 73, 73), set()),  # (13 - 4) / 18.4 = 0.49: by the length after the margin it would be 0.71
        ((70, 52, 90, 72), {"right of"}),  # 0.8 and 0.25
        # a wide one: the margin is 0.1 * (80 + 20) = 10 px across, 4 px down
        ((30, 40, 110, 60), set()),  # (20 - 10) / 20
        ((32, 40, 112, 60), {"right of"}),  # (22 - 10) / 22
    ],
)
def test_a_direction_holds_by_the_offset_shortened_by_a_margin_over_its_whole_length(box, holds):
    assert relations(box, (40.0, 40.0, 60.0, 60.0)) == holds


def test_at_most_sixteen_objects_of_a_class_count_the_surest():
    crowd = [Detection("dog", 0.91 + 0.004 * number, (0.0, 0.0, 1.0, 1.0)) for number in range(20)]
    (dogs,) = considered(crowd, "counting").values()
    assert len(dogs) == MOST_A_CLASS == 16
    assert all(first.score > second.score for first, second in pairwise(dogs))
    assert dogs[0] == crowd[-1]


def test_reasons_say_what_was_expected_and_what_was_found():
    both = [seen("dog", box=RIGHT, colour="pink"), seen("cat", box=LEFT)]
    assert verdict(BLUE_DOG_LEFT_OF_RED_CAT, both).reasons == ["expected blue dog >= 1, found 1 pink"]
    assert verdict(DOG_LEFT_OF_CAT, both).reasons == ["expected dog left of target, found right of target"]
    assert verdict(DOG_LEFT_OF_CAT, both[:1]).reasons == [
        "expected cat >= 1, found 0",
        "expected dog left of target, found no target",
    ]
    mistaken = [seen("dog", box=LEFT, colour="blue"), seen("cat", box=RIGHT, colour="pink")]
    assert verdict(BLUE_DOG_LEFT_OF_RED_CAT, mistaken).reasons == [
        "expected red cat >= 1, found 1 pink",
        "expected dog left of target, found no target",  # what fails is no target
    ]
    assert verdict(TWO_DOGS, [seen("dog")] * 3).reasons == ["expected dog < 3, found 3"]
    assert verdict(BLUE_DOG, both).colours == {"dog": ["pink"]}


# Our own scenes.


def as_sample(prompt: Prompt) -> Any:
    """What one of our prompts asks for, in GenEval's words: a place is seen from the object that is named last."""
    first, *rest = [
        some(one.shape, one.count, **({} if one.colour is None else {"color": one.colour}))
        for one in prompt.expects.objects
    ]
    include = [first, *rest]
    if prompt.expects.relation is not None:
        include = [*rest, {**first, "position": [prompt.expects.relation, 0]}]
    exclude = [some(first["class"], first["count"] + 1)] if prompt.skill == "counting" else []
    return asks("counting" if prompt.skill == "counting" else "two_object", *include, exclude=exclude)


def true_objects(scene: Scene) -> list[tuple[Detection, str]]:
    """Every object of a scene where it is, as a detector that makes no mistakes would see it at 64 px."""
    drawn = [
        (each, 64 * np.array([each.x - each.size / 2, each.y - each.size / 2, each.size, each.size]))
        for each in scene.objects
    ]
    return [
        seen(each.shape, 1.0, (left, top, left + width, top + height), each.colour)
        for each, (left, top, width, height) in drawn
    ]


def test_our_own_scenes_are_judged_as_by_our_own_detector():
    scenes = [sample("evaluation", DOMAINS[number % 2], number // 2) for number in range(500)]
    verdicts = []
    for number, each in enumerate(scenes):
        found, objects = detect(render(each.scene, 64)), true_objects(each.scene)
        later = (*scenes[number + 1 :], *scenes[:number])
        other = next(one for one in later if one.prompt.skill == each.prompt.skill)
        for prompt in (each.prompt, other.prompt):
            verdicts.append((verdict(as_sample(prompt), objects).correct, fulfils(found, prompt)))
    assert [number // 2 for number, (geneval, ours) in enumerate(verdicts) if geneval != ours] == []
    assert sum(ours for _, ours in verdicts) >= 500  # every scene fulfils its own prompt
    assert sum(not ours for _, ours in verdicts) >= 300  # and hardly any that of another
