"""Compositional accuracy: the share of pictures that show what their prompts ask for, by skill, as GenEval counts it.

GenEval (arXiv 2310.11513) asks an object detector; here the world is small enough for `detector.detect`.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from microdit.data.shapes import SKILLS, ExpectedObject, Prompt, render, sample
from microdit.evaluation.detector import DetectedObject, detect

_POSITION_MARGIN = 0.1
"""Share of the two objects' joint size that an offset between them must exceed to count (GenEval's)."""


def judge(image: Float[Tensor, "3 h w"] | UInt8[np.ndarray, "h w 3"], prompt: Prompt) -> bool:
    """Whether the picture shows what `prompt` asks for (see `fulfils`)."""
    return fulfils(detect(image), prompt)


def fulfils(found: Sequence[DetectedObject], prompt: Prompt) -> bool:
    """Whether the objects found are those that `prompt` asks for.

    Each must be there in its shape, and in its colour where one is named; `counting` needs exactly as many
    as asked for; a relation must hold between some pair of the objects asked for. Others may be there as well.
    """
    candidates = [[thing for thing in found if _matches(thing, expected)] for expected in prompt.expects.objects]
    for expected, matching in zip(prompt.expects.objects, candidates, strict=True):
        if len(matching) < expected.count or (prompt.skill == "counting" and len(matching) > expected.count):
            return False
    relation = prompt.expects.relation
    if relation is None:
        return True
    return any(relation in relations(first, second) for first, second in product(*candidates))


def _matches(thing: DetectedObject, expected: ExpectedObject) -> bool:
    return thing.shape == expected.shape and expected.colour in (None, thing.colour)


def relations(first: DetectedObject, second: DetectedObject) -> set[str]:
    """Where `first` lies, seen from `second`: of "left of", "right of", "above" and "below", none, one or two of them.

    The offset of the centres is shortened by a margin on each axis; a direction counts when it is within 60 degrees.
    """
    offset = np.array([first.x - second.x, first.y - second.y])
    margin = _POSITION_MARGIN * (first.size + second.size)
    offset = np.sign(offset) * np.maximum(np.abs(offset) - margin, 0)
    length = np.hypot(*offset)
    if length < 1e-3:
        return set()
    right, down = offset / length
    holds = {"left of": -right, "right of": right, "above": -down, "below": down}
    return {name for name, cosine in holds.items() if cosine > 0.5}


def compositional_accuracy(images: Float[Tensor, "n 3 h w"], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Shares in 0..1: one for each skill among `prompts`, and `overall`, their mean over these skills (as GenEval).

    With prompts of the skill `colors` there is `single_object_colour` too: the share of those whose picture's largest
    coloured region has the colour asked for, be it shaped like an object or not. `images` are in 0..1, one for each
    prompt. Raises ValueError when their numbers differ or are zero.
    """
    if len(images) != len(prompts) or not prompts:
        raise ValueError(f"got {len(images)} images for {len(prompts)} prompts; give one image for each prompt")
    verdicts: dict[str, list[bool]] = {}
    coloured: list[bool] = []
    for image, prompt in zip(images, prompts, strict=True):
        found = detect(image)
        verdicts.setdefault(prompt.skill, []).append(fulfils(found, prompt))
        if prompt.skill == "colors":
            regions = detect(image, least_fit=-math.inf)
            coloured.append(bool(regions) and regions[0].colour == prompt.expects.objects[0].colour)
    accuracy = {skill: float(np.mean(verdicts[skill])) for skill in SKILLS if skill in verdicts}
    accuracy["overall"] = float(np.mean(list(accuracy.values())))
    if coloured:
        accuracy["single_object_colour"] = float(np.mean(coloured))
    return accuracy


def detector_accuracy(domain: str, count: int, side_px: int = 32, seed: int = 0) -> dict[str, float]:
    """How far the detector can be trusted: its own shares over `count` true scenes of the evaluation split, rendered at
    `side_px`.

    `prompts`: scenes judged to fulfil their own prompt, `prompts_SKILL` for each skill; `wrong_prompts`: prompts
    of the same skill that are false of the scene, yet judged to be fulfilled; `counts`: scenes with the right number of
    objects; `shapes`, `colours`: true objects that something is found at (within half their width) with the right one.
    Raises ValueError for an unknown domain, and for a `count` too small to hold a false prompt for some scene.
    """
    samples = [sample("evaluation", domain, index, seed) for index in range(count)]
    shapes, colours, counts, wrong = [], [], [], []
    verdicts: dict[str, list[bool]] = {skill: [] for skill in SKILLS}
    for index, drawn in enumerate(samples):
        found = detect(render(drawn.scene, side_px))
        verdicts[drawn.prompt.skill].append(fulfils(found, drawn.prompt))
        counts.append(len(found) == len(drawn.scene.objects))
        truth = [DetectedObject(t.shape, t.colour, t.x, t.y, t.size, 1.0) for t in drawn.scene.objects]
        for other in samples[index + 1 :] + samples[:index]:
            if other.prompt.skill == drawn.prompt.skill and not fulfils(truth, other.prompt):
                wrong.append(fulfils(found, other.prompt))
                break
        for true in truth:
            near = next(
                (thing for thing in found if np.hypot(thing.x - true.x, thing.y - true.y) < true.size / 2), None
            )
            shapes.append(near is not None and near.shape == true.shape)
            colours.append(near is not None and near.colour == true.colour)
    if not wrong:
        raise ValueError(f"{count} scenes hold no false prompt to try; measure on more, some hundreds")
    return {
        "prompts": float(np.mean([verdict for each in verdicts.values() for verdict in each])),
        **{f"prompts_{skill}": float(np.mean(each)) for skill, each in verdicts.items() if each},
        "wrong_prompts": float(np.mean(wrong)),
        "counts": float(np.mean(counts)),
        "shapes": float(np.mean(shapes)),
        "colours": float(np.mean(colours)),
    }
