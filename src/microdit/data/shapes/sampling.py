"""Captioned scenes by number, split by caption, and the prompts that evaluation asks with."""

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate

import numpy as np

from microdit.data.shapes.captions import Prompt, write_prompt
from microdit.data.shapes.compose import compose, stage
from microdit.data.shapes.scenes import DOMAINS, SKILLS, SPLITS, Scene

_TRAIN_SHARE, _VALIDATION_SHARE = 0.80, 0.05
SKILL_SHARES: Mapping[str, float] = dict(zip(SKILLS, (0.10, 0.08, 0.10, 0.52, 0.10, 0.10), strict=True))
"""How many scenes ask for each skill. Lone objects whose captions name colour and shape are half of them: that is what
is learnt first, and what minutes of training suffice for (experiments/laptop_pilots)."""
_DRAWS_IN_VAIN = 5_000
"""After so many draws without a new text, there is none left to speak of."""


@dataclass(frozen=True)
class Sample:
    """One captioned scene."""

    scene: Scene
    prompt: Prompt

    @property
    def caption(self) -> str:
        """The text alone."""
        return self.prompt.text


def split_of(caption: str) -> str:
    """The split that `caption` belongs to: "train", "validation" or "evaluation", about 80, 5 and 15 in a hundred.

    A hash of the caption's words decides (letter case, spacing and punctuation set aside), so no text is in two splits.
    """
    letters = "".join(letter if letter.isalnum() else " " for letter in caption.lower())
    share = int.from_bytes(blake2b(" ".join(letters.split()).encode(), digest_size=8).digest()) / 2**64
    if share < _TRAIN_SHARE:
        return "train"
    return "validation" if share < _TRAIN_SHARE + _VALIDATION_SHARE else "evaluation"


def sample(
    split: str, domain: str, index: int, seed: int = 0, skill_shares: Mapping[str, float] = SKILL_SHARES
) -> Sample:
    """The sample number `index` of an endless series: a pure function of its arguments.

    Raises ValueError for an unknown split or domain.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    _check_domain(domain)
    random = _generator("sample", seed, split, domain, index)
    bounds = tuple(accumulate(skill_shares.get(skill, 0.0) for skill in SKILLS))
    skill = SKILLS[bisect(bounds[:-1], random.random() * bounds[-1])]
    while True:
        composition = compose(random, domain, skill)
        prompt = write_prompt(random, composition)
        if split_of(prompt.text) == split:
            return Sample(stage(random, composition), prompt)


def evaluation_prompts(
    count_per_skill: int, skills: Sequence[str] = SKILLS, domain: str = "real", seed: int = 0
) -> list[Prompt]:
    """`count_per_skill` prompts of each of `skills`, in that order: distinct texts, all of the evaluation split, worded
    as `domain` words its captions. As in GenEval, only the two colour skills name colours.

    Raises ValueError for an unknown skill or domain, and when there are not so many texts.
    """
    _check_domain(domain)
    return [prompt for skill in skills for prompt in _prompts_of(skill, count_per_skill, domain, seed)]


def _prompts_of(skill: str, count: int, domain: str, seed: int) -> list[Prompt]:
    random = _generator("prompts", seed, domain, skill)
    found: dict[str, Prompt] = {}
    in_vain = 0
    while len(found) < count:
        if in_vain == _DRAWS_IN_VAIN:
            raise ValueError(
                f"only {len(found)} of the {count} distinct {skill} prompts asked for exist in the evaluation split of "
                f"domain {domain!r}; ask for fewer per skill"
            )
        in_vain += 1
        prompt = write_prompt(random, compose(random, domain, skill))
        names_colour = any(expected.colour is not None for expected in prompt.expects.objects)
        if names_colour != (skill in ("colors", "color_attribution")) or prompt.text in found:
            continue
        if split_of(prompt.text) == "evaluation":
            found[prompt.text] = prompt
            in_vain = 0
    return list(found.values())


def _check_domain(domain: str) -> None:
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain!r}; choose one of {', '.join(DOMAINS)}")


def _generator(*key: str | int) -> np.random.Generator:
    digest = blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest)))
