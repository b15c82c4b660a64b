"""GenEval's 553 prompts and what each asks for, made by their recipe, or read from an `evaluation_metadata.jsonl`.

A prompt is held as that file has it: a tag, the text, and clauses of objects that must be there, or must not.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from microdit.files import damaged, small_text
from microdit.kinds import Limits, OneOf, SettingsError, check_kind

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
# The 80 classes of COCO, in COCO's order, under GenEval's names.
CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich"),
    *("orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed"),
    *("dining table", "toilet", "tv", "laptop", "computer mouse", "tv remote", "computer keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
SEED, DRAWS = 43, 100
NUMBERS = {2: "two", 3: "three", 4: "four"}
MOST_A_CLASS = 16  # objects of one class that are looked at, the surest ones
LARGEST_FILE = 1 << 26  # bytes; the official file has a thousandth of it

Clause = TypedDict(
    "Clause", {"class": Annotated[str, OneOf(CLASSES)], "count": Annotated[int, Limits(1, MOST_A_CLASS)]}
)


class Asked(Clause, total=False):
    """So many objects of a class; each of a colour, or each in a direction from all of those that an earlier clause of
    the prompt, by its number, found."""

    color: Annotated[str, OneOf(COLOURS)]
    position: tuple[Annotated[str, OneOf(RELATIONS)], Annotated[int, Limits(0, MOST_A_CLASS)]]


class Asking(TypedDict):
    """What every prompt has."""

    tag: Annotated[str, OneOf(TAGS)]
    include: Annotated[list[Asked], Limits(1, MOST_A_CLASS)]
    prompt: Annotated[str, Limits(1, 10_000)]


class Sample(Asking, total=False):
    """A prompt and what its picture must show: all of `include`, and nothing of `exclude` (so many, or more)."""

    exclude: Annotated[list[Clause], Limits(0, MOST_A_CLASS)]


def recipe() -> list[Sample]:
    """The 553 prompts of GenEval, tag by tag: 80, 99, 80, 94, 100 and 100."""
    random = np.random.default_rng(SEED)
    single = [asking("single_object", a(name), [one(name)]) for name in several(random, 80)]
    drawn = [distinct(draw, random) for draw in (two_objects, number_of_objects, colour, place, two_colours)]
    return [*single, *(sample for samples in drawn for sample in samples)]


def two_objects(random: np.random.Generator) -> Sample:
    first, second = several(random, 2)
    return asking("two_object", f"{a(first)} and {a(second)}", [one(first), one(second)])


def number_of_objects(random: np.random.Generator) -> Sample:
    name, count = CLASSES[random.choice(80)], int(random.integers(2, 4, endpoint=True))
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    asked: list[Any] = [{"class": name, "count": count}]
    return asking("counting", f"{NUMBERS[count]} {plural}", asked, [{"class": name, "count": count + 1}])


def colour(random: np.random.Generator) -> Sample:
    name, hue = CLASSES[(random.choice(79) + 1) % 80], COLOURS[random.choice(10)]  # never a person
    return asking("colors", a(f"{hue} {name}"), [one(name, color=hue)])


def place(random: np.random.Generator) -> Sample:
    name, seen_from = several(random, 2)
    relation = RELATIONS[random.choice(4)]
    asked = [one(seen_from), one(name, position=[relation, 0])]
    return asking("position", f"{a(name)} {relation} {a(seen_from)}", asked)


def two_colours(random: np.random.Generator) -> Sample:
    names = [CLASSES[number] for number in (random.choice(79, size=2, replace=False) + 1) % 80]
    hues = [COLOURS[number] for number in random.choice(10, size=2, replace=False)]
    asked = [one(name, color=hue) for name, hue in zip(names, hues, strict=True)]
    return asking("color_attr", " and ".join(a(f"{hue} {name}") for name, hue in zip(names, hues, strict=True)), asked)


def several(random: np.random.Generator, count: int) -> list[str]:
    return [CLASSES[number] for number in random.choice(80, size=count, replace=False)]


def distinct(draw: Callable[[np.random.Generator], Sample], random: np.random.Generator) -> list[Sample]:
    """DRAWS samples without those that came before."""
    drawn = [draw(random) for _ in range(DRAWS)]
    return [sample for number, sample in enumerate(drawn) if sample not in drawn[:number]]


def one(name: str, **more: Any) -> Any:
    return {"class": name, "count": 1, **more}


def asking(tag: str, subject: str, include: list[Asked], exclude: list[Clause] | None = None) -> Sample:
    without = {} if exclude is None else {"exclude": exclude}
    return {"tag": tag, "include": include, **without, "prompt": f"a photo of {subject}"}  # type: ignore[return-value]


def a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def read_samples(path: Path) -> list[Sample]:
    """The prompts in an `evaluation_metadata.jsonl`, or the one in a `metadata.jsonl`, one a line. DamagedFileError,
    with the line, for what is none; OSError as `open`."""
    cure = "each line is a prompt as in GenEval's evaluation_metadata.jsonl"
    found = []
    for number, line in enumerate(small_text(path, cure, LARGEST_FILE).split("\n"), start=1):
        if line.strip():
            try:
                found.append(checked(json.loads(line), "it:"))
            except (ValueError, RecursionError) as error:
                raise damaged(path, ValueError(f"line {number}: {error}"), cure) from error
    if not found:
        raise damaged(path, ValueError("it holds no prompt"), cure)
    return found


def checked(content: Any, where: str) -> Sample:
    """A prompt as it was read. SettingsError for what is none, and for a place seen from objects named later."""
    check_kind(content, Sample, where)
    for number, asked in enumerate(content["include"]):
        if "position" in asked and asked["position"][1] >= number:
            raise SettingsError(f"{where} include.{number}.position is seen from a clause that does not come before it")
    return content


def of_each_tag(samples: Sequence[Sample], count: int | None) -> list[Sample]:
    """The first `count` of each tag (None: all)."""
    return [each for tag in TAGS for each in [one for one in samples if one["tag"] == tag][:count]]
