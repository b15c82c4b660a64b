"""Captions that are true of a composition by construction, and what a picture must show to fulfil them."""

from dataclasses import dataclass

import numpy as np

from microdit.data.shapes.compose import Composition, Thing, pick

_NUMBERS = {2: "two", 3: "three", 4: "four"}
_PLURALS = {"cross": "crosses"}

_REAL_OPENINGS = ("", "", "", "a photo of ", "a picture of ", "a photograph of ", "a snapshot of ")
_SYNTHETIC_OPENINGS = (
    "",
    "",
    "an illustration of ",
    "a drawing of ",
    "a clean graphic of ",
    "a simple image of ",
    "a poster with ",
    "a minimal design with ",
    "digital art of ",
    "an image showing ",
)
_STYLES = ("flat design", "vector style", "clean and simple", "minimal style", "sharp edges")
_PLACE_PHRASES = {
    "left": ("on the left", "on the left side"),
    "right": ("on the right", "on the right side"),
    "top": ("at the top", "near the top"),
    "bottom": ("at the bottom", "near the bottom"),
    "center": ("in the center", "in the middle"),
}
_JOINTS = {"real": (" and ",), "synthetic": (" and ", " and ", " with ", " together with ", " plus ")}
_COUNTED = {"real": ("{}",), "synthetic": ("{}", "{}", "exactly {}", "a group of {}", "a set of {}")}
_RELATED = {"real": ("",), "synthetic": ("", "", "placed ", "drawn ")}


@dataclass(frozen=True)
class ExpectedObject:
    """`count` objects of `shape`, of `colour` where it is not None."""

    shape: str
    colour: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Expectation:
    """What a picture must show. `relation` is where the first object lies, seen from the second."""

    objects: tuple[ExpectedObject, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Prompt:
    """A caption, the skill it asks for, and what a picture must show to fulfil it."""

    text: str
    skill: str
    expects: Expectation


def write_prompt(random: np.random.Generator, composition: Composition) -> Prompt:
    """Put `composition` into words. Short and plain in the `real` domain, richer and more various in `synthetic`.

    Sizes, places and grounds may be named, and truly, but are not part of what is expected: GenEval asks for none.
    """
    skill, domain, things = composition.skill, composition.domain, composition.things
    nameable = skill == "position" or (skill == "counting" and len({thing.colour for thing in things}) == 1)
    names_colour = skill in ("colors", "color_attribution") or (nameable and random.random() < 0.8)
    nouns = [_noun(random, thing, names_colour) for thing in things[: _named(skill)]]
    expected = tuple(
        ExpectedObject(thing.shape, thing.colour if names_colour else None, len(things) if skill == "counting" else 1)
        for thing in things[: _named(skill)]
    )
    if skill == "counting":
        subject = pick(random, _COUNTED[domain]).format(f"{_NUMBERS[len(things)]} {_plural(nouns[0])}")
    elif composition.relation is not None:
        subject = f"{_with_article(nouns[0])} {_relation(random, composition)} {_with_article(nouns[1])}"
    else:
        subject = pick(random, _JOINTS[domain]).join(_with_article(noun) for noun in nouns)
    text = _dress(random, subject, composition)
    return Prompt(text, skill, Expectation(expected, composition.relation))


def _named(skill: str) -> int:
    """How many of the things get a noun of their own."""
    return 2 if skill in ("two_object", "position", "color_attribution") else 1


def _noun(random: np.random.Generator, thing: Thing, names_colour: bool) -> str:
    words = [thing.colour, thing.shape] if names_colour else [thing.shape]
    if random.random() < 0.35:
        words.insert(0, "large" if thing.large else "small")
    return " ".join(words)


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _plural(noun: str) -> str:
    *attributes, shape = noun.split(" ")
    return " ".join([*attributes, _PLURALS.get(shape, f"{shape}s")])


def _relation(random: np.random.Generator, composition: Composition) -> str:
    words = composition.relation
    assert words is not None
    if words.endswith(" of") and random.random() < 0.4:
        words = f"to the {words}"
    return pick(random, _RELATED[composition.domain]) + words


def _dress(random: np.random.Generator, subject: str, composition: Composition) -> str:
    if composition.domain == "real":
        ground = f" on {composition.ground}" if random.random() < 0.35 else ""
        return pick(random, _REAL_OPENINGS) + subject + ground
    text = pick(random, _SYNTHETIC_OPENINGS) + subject
    if composition.place is not None:
        text += f" {pick(random, _PLACE_PHRASES[composition.place])}"
    # Mostly named: what a caption leaves open of so much of the picture drowns what it says of the object.
    if random.random() < 0.85:
        text += f" on {_with_article(composition.ground)} background"
    if random.random() < 0.3:
        text += f", {pick(random, _STYLES)}"
    return text
