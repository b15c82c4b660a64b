"""Captions against scenes, by reading the words anew: nothing here trusts what the generator meant."""

import re

import pytest

from microdit.data.shapes import COLOURS, DOMAINS, RELATIONS, SHAPES, Sample, SceneObject, sample

_NUMBERS = {"two": 2, "three": 3, "four": 4}
_NOUN = re.compile(
    rf"\b(an?|two|three|four) (?:(small|large) )?(?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)})(?:e?s)?\b"
)
_PLACED = re.compile(r"(?:on the|at the|near the|in the) (left|right|top|bottom|center|middle)(?! of)")


def _samples(domain: str, count: int = 1500) -> list[Sample]:
    return [sample("train", domain, index, seed=11) for index in range(count)]


def _fits(drawn: SceneObject, alone: bool, size: str | None, colour: str | None, shape: str) -> bool:
    if size is not None and (drawn.size < (0.5 if alone else 0.37)) != (size == "small"):
        return False
    return drawn.shape == shape and colour in (None, drawn.colour)


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_scene_holds_exactly_the_objects_that_the_caption_names(domain: str) -> None:
    for each in _samples(domain):
        remaining = list(each.scene.objects)
        alone = len(remaining) == 1
        for article, size, colour, shape in _NOUN.findall(each.caption):
            for _ in range(_NUMBERS.get(article, 1)):
                match = next(drawn for drawn in remaining if _fits(drawn, alone, size or None, colour or None, shape))
                remaining.remove(match)
        assert not remaining, each


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_relation_named_holds_between_the_centres(domain: str) -> None:
    seen = set()
    for each in _samples(domain):
        relation = next((relation for relation in RELATIONS if f" {relation} " in each.caption), None)
        assert (relation is not None) == (each.scene.skill == "position")
        if relation is None:
            continue
        seen.add(relation)
        first, second = (
            next(drawn for drawn in each.scene.objects if drawn.shape == shape)
            for _, _, _, shape in _NOUN.findall(each.caption)
        )
        right, down = first.x - second.x, first.y - second.y
        along = {"left of": -right, "right of": right, "above": -down, "below": down}[relation]
        across = down if relation.endswith(" of") else right
        assert along > 0.3, each
        assert abs(across) <= 0.5 * along, each
    assert seen == set(RELATIONS)


def test_the_place_named_is_where_the_object_lies() -> None:
    seen = set()
    for each in _samples("synthetic"):
        for place in _PLACED.findall(each.caption):
            seen.add(place)
            (drawn,) = each.scene.objects
            nearness = {"left": 1 - drawn.x, "right": drawn.x, "top": 1 - drawn.y, "bottom": drawn.y}
            if place in nearness:
                assert nearness[place] > 0.6, each
            else:
                assert max(abs(drawn.x - 0.5), abs(drawn.y - 0.5)) < 0.06, each
    assert seen == {"left", "right", "top", "bottom", "center", "middle"}


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_ground_named_is_the_scene_s(domain: str) -> None:
    pattern = r" on (wood|stone|sand|cloth|paper)$" if domain == "real" else r" on a (\w+) background"
    named = [(each, match) for each in _samples(domain) if (match := re.search(pattern, each.caption))]
    assert len(named) > 100
    for each, match in named:
        assert each.scene.background.name == match[1]
        brightness = sum(each.scene.background.colour) / 3
        if match[1] in ("white", "light"):
            assert brightness > 0.8
        if match[1] in ("black", "dark"):
            assert brightness < 0.3


@pytest.mark.parametrize("domain", DOMAINS)
def test_what_is_expected_is_what_the_caption_says(domain: str) -> None:
    for each in _samples(domain, 400):
        read = [
            (shape, colour or None, _NUMBERS.get(article, 1))
            for article, _, colour, shape in _NOUN.findall(each.caption)
        ]
        assert [(one.shape, one.colour, one.count) for one in each.prompt.expects.objects] == read


def test_real_captions_are_shorter_and_plainer_than_synthetic_ones() -> None:
    words = {domain: [each.caption.replace(",", "").split() for each in _samples(domain)] for domain in DOMAINS}
    mean_length = {domain: sum(map(len, texts)) / len(texts) for domain, texts in words.items()}
    vocabulary = {domain: {word for text in texts for word in text} for domain, texts in words.items()}
    assert mean_length["real"] + 2 < mean_length["synthetic"]
    assert len(vocabulary["real"]) < 60 < len(vocabulary["synthetic"]) < 100
