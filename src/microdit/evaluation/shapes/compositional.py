"""Compositional accuracy: the share of pictures that show what their prompts ask for, by skill, as GenEval counts it.

GenEval (arXiv 2310.11513) asks an object detector; here the world is small enough for `detector.detect`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, islice, product, zip_longest
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from microdit.data.shapes import SKILLS, ExpectedObject, Prompt, evaluation_prompts
from microdit.data.sources.captioned import CaptionedImage
from microdit.evaluation.metric import Metric
from microdit.evaluation.shapes.detector import DetectedObject, detect
from microdit.evaluation.subject import Count, Domains, Sampling, Subject
from microdit.grid import prompt_grid

_POSITION_MARGIN = 0.1
"""Share of the two objects' joint size that an offset between them must exceed to count (GenEval's)."""


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


class Seen(NamedTuple):
    """Of a picture: whether it shows what its prompt asks for, and of the skill `colors` whether its largest coloured
    region has the colour asked for, be it shaped like an object or not; else None."""

    right: bool
    coloured: bool | None


def seen(image: Float[Tensor, "3 h w"], prompt: Prompt) -> Seen:
    """What is seen in a picture in 0..1."""
    right, coloured = fulfils(detect(image), prompt), None
    if prompt.skill == "colors":
        regions = detect(image, least_fit=-math.inf)
        coloured = bool(regions) and regions[0].colour == prompt.expects.objects[0].colour
    return Seen(right, coloured)


def compositional_accuracy(images: Iterable[Float[Tensor, "3 h w"]], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Shares as `accuracy_of` has them. `images` are in 0..1, one for each prompt, looked at one by one. Raises
    ValueError when their numbers differ or are zero.
    """
    found = []
    for image, prompt in zip_longest(images, prompts):
        if image is None or prompt is None:
            raise ValueError(f"got more or fewer images than {len(prompts)} prompts; give one image for each")
        found.append(seen(image, prompt))
    return accuracy_of(found, prompts)


def accuracy_of(of_images: Iterable[Seen], prompts: Sequence[Prompt]) -> dict[str, float]:
    """Shares in 0..1: one for each skill among `prompts`, and `overall`, their mean over these skills (as GenEval).

    With prompts of the skill `colors` there is `single_object_colour` too. `of_images`: what was seen in a picture of
    each prompt. Raises ValueError where there is none.
    """
    verdicts: dict[str, list[bool]] = {}
    coloured: list[bool] = []
    for one, prompt in zip(of_images, prompts, strict=True):
        verdicts.setdefault(prompt.skill, []).append(one.right)
        if one.coloured is not None:
            coloured.append(one.coloured)
    if not verdicts:
        raise ValueError("got no prompts; give one at least, and give one image for each")
    accuracy = {skill: float(np.mean(verdicts[skill])) for skill in SKILLS if skill in verdicts}
    accuracy["overall"] = float(np.mean(list(accuracy.values())))
    if coloured:
        accuracy["single_object_colour"] = float(np.mean(coloured))
    return accuracy


SHOWN_PER_SKILL, AT_ONCE = 6, 16


@dataclass(frozen=True)
class ShapesCompositional(Metric):
    """Generates held-out prompts of each skill in the wording of `domains`, and reads the pictures back.

    `prompts_per_skill` for each of the six skills, `colour_prompts` for the colour of single objects, which is the
    number that tells earliest whether captions are read. `sampling`: arguments of LatentDiffusion.generate; its seed
    also draws the prompts.
    """

    domains: Domains
    prompts_per_skill: Count
    colour_prompts: Count
    sampling: Sampling

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`compositional/SKILL`, `compositional/overall`, `compositional/single_object_colour`, all shares in 0..1."""
        prompts = self.prompts()
        pictures = subject.pictures("skills", [prompt.text for prompt in prompts], self.sampling)
        asked = iter(prompts)
        batches = ((batch, list(islice(asked, len(batch)))) for batch in pictures.in_batches(AT_ONCE))

        def looked_at(batch: tuple[list[CaptionedImage], list[Prompt]]) -> list[Seen]:
            return [seen(image, prompt) for image, prompt in zip(pictures.opened(batch[0]), batch[1], strict=True)]

        found = subject.each(batches, looked_at, -(-pictures.count // AT_ONCE), "looking at pictures")
        accuracy = accuracy_of(chain.from_iterable(found), prompts)
        shown = []
        for skill in SKILLS:
            mine = [i for i, prompt in enumerate(prompts) if prompt.skill == skill]
            step = max(1, len(mine) // SHOWN_PER_SKILL)
            shown += mine[::step][:SHOWN_PER_SKILL]
        images = torch.from_numpy(pictures.to_show(shown)).float() / 255
        grid = prompt_grid(images, [prompts[i].text for i in shown], columns=SHOWN_PER_SKILL)
        return {f"compositional/{name}": value for name, value in accuracy.items()}, grid

    def prompts(self) -> list[Prompt]:
        """All prompts, skill by skill."""
        found: list[Prompt] = []
        for skill in SKILLS:
            count = self.colour_prompts if skill == "colors" else self.prompts_per_skill
            for number, domain in enumerate(self.domains):
                share = (count + number) // len(self.domains)
                found += evaluation_prompts(share, (skill,), domain, self.sampling["seed"]) if share else []
        return found
