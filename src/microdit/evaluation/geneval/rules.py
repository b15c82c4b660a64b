"""GenEval's rules: from the objects that a detector saw in a picture to whether it shows what its prompt asks for.

Nothing here knows a network: detections come in, and colours are named by whoever is asked.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool

from microdit.evaluation.geneval.prompts import COLOURS, MOST_A_CLASS, Sample

SUREST = 0.3  # scores must lie above it
SUREST_COUNTED = 0.9  # for counting, where a second guess at an object would be one more
MARGIN = 0.1  # share of the objects' joint size by which the offset between them is shortened
DIRECTION = 0.5  # share of the offset that must lie along a direction

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels; right and bottom are outside


@dataclass(frozen=True)
class Detection:
    """An object that was seen: a class of COCO, how sure that is (0 to 1), where, and, where known, its pixels."""

    name: str
    score: float
    box: Box
    mask: Bool[np.ndarray, "h w"] | None = None


Colours = Callable[[Sequence[Detection], str], list[str]]  # the colour of each of some objects of a class


@dataclass(frozen=True)
class Judgement:
    """Why a picture is wrong (nothing: it is right), and the colours that were named on the way, class by class."""

    reasons: list[str]
    colours: dict[str, list[str]] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        return not self.reasons


def considered(seen: Iterable[Detection], tag: str) -> dict[str, list[Detection]]:
    """The objects that count for prompts of a tag, class by class, the surest first: those that overlap all stay."""
    least = SUREST_COUNTED if tag == "counting" else SUREST
    found: dict[str, list[Detection]] = {}
    for each in sorted(seen, key=lambda one: -one.score):
        if each.score > least and len(found.get(each.name, [])) < MOST_A_CLASS:
            found.setdefault(each.name, []).append(each)
    return found


def judge(sample: Sample, found: Mapping[str, Sequence[Detection]], colours: Colours) -> Judgement:
    """Whether the objects `found` (see `considered`) are what a prompt asks for.

    For each clause the surest objects of its class count, as many as it asks for; its colour and its place are theirs.
    A clause that fails is no target for the place of another.
    """
    reasons: list[str] = []
    named: dict[str, list[str]] = {}
    matched: list[Sequence[Detection]] = []  # by clause; nothing where it failed
    for asked in sample["include"]:
        name, count, before = asked["class"], asked["count"], len(reasons)
        mine = found.get(name, [])[:count]
        if len(mine) < count:
            reasons.append(f"expected {name} >= {count}, found {len(mine)}")
        else:
            if "color" in asked:
                seen = named[name] = colours(mine, name)
                if seen.count(asked["color"]) < count:
                    reasons.append(f"expected {asked['color']} {name} >= {count}, found {in_words(seen)}")
            if "position" in asked and len(reasons) == before:
                wrong = misplaced(mine, asked["position"][0], matched[asked["position"][1]])
                reasons += [f"expected {name} {asked['position'][0]} target, found {wrong}"] if wrong else []
        matched.append(mine if len(reasons) == before else [])
    for clause in sample.get("exclude", []):
        if (there := len(found.get(clause["class"], []))) >= clause["count"]:
            reasons.append(f"expected {clause['class']} < {clause['count']}, found {there}")
    return Judgement(reasons, named)


def in_words(colours: Sequence[str]) -> str:
    return ", ".join(f"{colours.count(colour)} {colour}" for colour in COLOURS if colour in colours)


def misplaced(objects: Sequence[Detection], relation: str, targets: Sequence[Detection]) -> str | None:
    """Where the first object lies that is not where it should, seen from one of the targets; None: all are there."""
    if not targets:
        return "no target"
    for one in objects:
        for target in targets:
            if relation not in (holds := relations(one.box, target.box)):
                return f"{' and '.join(sorted(holds)) or 'no direction from'} target"
    return None


def relations(first: Box, second: Box) -> set[str]:
    """Where a box lies, seen from another: of "left of", "right of", "above" and "below", none, one or two of them.

    The offset of the centres is shortened on each axis, and divided by its length as it was before that.
    """
    corners = np.array([first, second], dtype=np.float64).reshape(2, 2, 2)
    centres, sizes = corners.mean(1), np.abs(corners[:, 1] - corners[:, 0])
    offset = centres[0] - centres[1]
    shortened = np.sign(offset) * np.maximum(np.abs(offset) - MARGIN * sizes.sum(0), 0)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    right, down = shortened / np.linalg.norm(offset)
    along = {"left of": -right, "right of": right, "above": -down, "below": down}
    return {name for name, share in along.items() if share > DIRECTION}
