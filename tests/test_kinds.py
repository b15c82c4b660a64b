"""What settings and files hold is of the kind that is declared for it, or refused in a sentence that names where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypedDict

import pytest

from microdit.encoders.pixel import PixelAutoencoder
from microdit.kinds import (
    OTHERS,
    ArgumentsOf,
    Limits,
    OneOf,
    SettingsError,
    check_arguments,
    check_kind,
    check_names,
    kinds_of,
    told_with,
)

Open = TypedDict("Open", {"known": int, "**": str})


class Needed(TypedDict):
    known: int


class Needing(Needed, total=False):
    more: str


class Part(TypedDict, total=False):
    ratio: Annotated[float, Limits(0, 2)]
    names: list[str]


def some_settings(
    steps: Annotated[int, Limits(1, 10)] = 1,
    rate: float | None = None,
    pair: tuple[float, float] = (0, 1),
    names: Sequence[str] = (),
    how: Literal["fast", "well"] = "fast",
    inner: Annotated[Mapping[str, float], Limits(0, 1)] | None = None,
    later: PixelAutoencoder | None = None,
    either: list[int] | list[str] = (),  # type: ignore[assignment]
    sampler: Annotated[str, OneOf(("heun", "euler"))] = "heun",
    part: Part | None = None,
) -> None:
    """Takes what settings hold."""


@dataclass
class Whole:
    """What a file holds."""

    count: int
    parts: dict[str, Part | str]
    note: str | None = None
    labels: dict[str | float | bool, Any] | None = None
    settings: Annotated[Mapping[str, Any], ArgumentsOf(some_settings)] | None = None
    pairs: Annotated[list[tuple[int, str]], Limits(0, 2)] | None = None


WHERE = {"here": "here.", "": "", "a.json:": "a.json: "}
"""Places of all that there is, and how those below them begin."""


def test_a_key_near_to_none_is_refused_with_all_valid_ones():
    with pytest.raises(SettingsError) as caught:
        check_names(["zzz"], ["steps", "seed"], where="trainer")
    assert str(caught.value) == "trainer has no setting 'zzz'. It knows: seed, steps"


def test_known_names_pass():
    check_names(["a", "b"], ["b", "a", "c"], where="here")


def test_names_are_those_of_the_signature_or_any():
    def some(first, *rest, second=1):
        """Takes two by name."""

    assert [*kinds_of(some)] == ["first", "second"]
    assert [*kinds_of(lambda **anything: anything)] == [OTHERS]
    assert kinds_of(PixelAutoencoder.decode).keys() == {"latents"}


@pytest.mark.parametrize(
    "meant",
    [
        {"steps": 10, "rate": 1, "pair": [0, 0.5], "names": ["a"], "how": "well", "inner": {"a": 1.5}},
        {"rate": None, "pair": (1, 2), "names": [], "inner": None, "later": None},
        {"rate": -1e30, "either": [1, 2], "sampler": "euler", "part": {"ratio": 2, "names": ["b"]}},
        {"either": ["a"], "part": {}},
    ],
)
def test_arguments_of_the_kinds_that_annotations_ask_for_are_meant(meant):
    check_arguments(some_settings, meant, "here")
    check_kind({"count": 1, "parts": {}, "settings": meant}, Whole, "a.json:")


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 10, got 0"),
        ({"steps": 1.0}, "steps must be a whole number from 1 to 10, got 1.0"),
        ({"steps": True}, "steps must be a whole number from 1 to 10, got True"),
        ({"rate": "1e-4"}, "rate must be a number or null, got '1e-4'"),
        ({"rate": False}, "rate must be a number or null, got False"),
        ({"rate": float("nan")}, "rate must be a number or null, got nan"),
        ({"rate": float("-inf")}, "rate must be a number or null, got -inf"),
        ({"rate": 10**400}, "rate must be a number or null, got 1000"),
        ({"pair": [1]}, "pair must be a list whose values are each a number, 2 of them, got [1]"),
        ({"pair": [1, "b"]}, "pair.1 must be a number, got 'b'"),
        ({"names": "abc"}, "names must be a list whose values are each a text, got 'abc'"),
        ({"names": ["a", 3]}, "names.1 must be a text, got 3"),
        ({"how": "badly"}, "how must be fast or well, got 'badly'"),
        ({"how": ["fast"]}, "how must be fast or well, got ['fast']"),
        ({"sampler": "ddim"}, "sampler must be a text of heun, euler, got 'ddim'"),
        ({"inner": {"a": "b"}}, "inner.a must be a number, got 'b'"),
        ({"inner": {1: 2}}, "inner must be settings by name, 0 to 1 of them or null, got {1: 2}"),
        ({"inner": {"a": 1, "b": 2}}, "inner must be settings by name, 0 to 1 of them or null"),
        ({"either": [1, "a"]}, "either.0 must be a text, got 1"),
        ({"later": {"a": 1}}, "later must be null, got {'a': 1}"),
        ({"part": {"ratio": 3}}, "part.ratio must be a number from 0 to 2, got 3"),
        ({"part": {"rati": 3}}, "part has no setting 'rati'; did you mean 'ratio'"),
    ],
)
def test_arguments_of_other_kinds_are_refused_with_their_place(where, given, told):
    with pytest.raises(SettingsError) as caught:
        check_arguments(some_settings, given, where)
    assert str(caught.value).startswith(f"{WHERE[where]}{told}")


@pytest.mark.parametrize(
    "content",
    [
        {"parts": {}},
        {"parts": {"a": "b"}, "note": None, "labels": {True: 1, 0.5: {}}},
        {"parts": {"a": {"ratio": 1, "names": ["b"]}, "c": {}}, "pairs": [[1, "a"], [2, "b"]]},
    ],
)
def test_what_is_of_its_kind_passes(content):
    check_kind({"count": 1, **content}, Whole, "a.json:")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([], "a.json must be settings by name, got []"),
        ({"count": 1}, "a.json also needs: parts"),
        ({"count": 1, "parts": {}, "nots": ""}, "a.json has no setting 'nots'; did you mean 'note'"),
        ({"count": True, "parts": {}}, "a.json: count must be a whole number, got True"),
        ({"count": 1.0, "parts": {}}, "a.json: count must be a whole number, got 1.0"),
        ({"count": 10**30, "parts": {}}, "a.json: count must be a whole number, got 1000"),
        ({"count": 1, "parts": {"a": 3}}, "a.json: parts.a must be settings by name or a text, got 3"),
        ({"count": 1, "parts": {"a": {"names": ["b", None]}}}, "a.json: parts.a.names.1 must be a text, got None"),
        ({"count": 1, "parts": {"a": {"ratio": 3}}}, "a.json: parts.a.ratio must be a number from 0 to 2, got 3"),
        ({"count": 1, "parts": {}, "labels": {None: 1}}, "a.json: labels must be settings by name or null, got {None"),
        ({"count": 1, "parts": {}, "settings": {"steps": 0}}, "a.json: settings.steps must be a whole number from 1"),
        ({"count": 1, "parts": {}, "settings": {"step": 0}}, "a.json: settings has no setting 'step'"),
        ({"count": 1, "parts": {}, "pairs": [[1]] * 3}, "a.json: pairs must be a list .*, 0 to 2 of them or null"),
        ({"count": 1, "parts": {}, "pairs": [[1, 2]]}, "a.json: pairs.0.1 must be a text, got 2"),
    ],
)
def test_what_a_file_holds_of_another_kind_is_named_with_its_place(content, told):
    with pytest.raises(SettingsError) as caught:
        check_kind(content, Whole, "a.json:")
    first, _, last = told.partition(".*")
    assert str(caught.value).startswith(first)
    assert last in str(caught.value)


@pytest.mark.parametrize("kind", [Open, Needing])
def test_a_dictionary_says_what_it_needs_and_may_be_open_to_more(kind):
    check_kind({"known": 1, "more": "a"}, kind, "here")
    for given, told in (
        ({"more": "a"}, "also needs: known"),
        ({"known": 1, "more": 2}, "here.more must be a text"),
    ):
        with pytest.raises(SettingsError, match=told):
            check_kind(given, kind, "here")


@pytest.mark.parametrize(
    ("said", "told"), [("trainer.steps is wrong", "trainer.steps is wrong"), ("it is wrong", "trainer: it is wrong")]
)
def test_a_place_is_told_once(said, told):
    with pytest.raises(SettingsError, match=f"^{told}$"), told_with("trainer"):
        raise SettingsError(said)
