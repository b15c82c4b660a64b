"""What a judge says is one of the choices, a refusal, or cannot be read."""

import pytest

from microdit.evaluation.judging.questions import (
    FIRST_OF_TWO,
    REFUSED,
    UNREADABLE,
    YES_OR_NO,
    Reply,
    chosen,
    probabilities_of,
)


def said(text: str, refused: bool = False, first: dict[str, float] | None = None) -> Reply:
    return Reply(text, refused, first, 0, 0)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("no", "no"),
        (" **Yes**.", "yes"),
        ("Yes, there is no doubt.", "yes"),
        ("No. Yes would be wrong", "no"),
        ("Answer: yes", "yes"),
        ("The answer is no", "no"),
        ("yes I'm sorry to say", "yes"),
        ("<think>no, no, it says no</think>\nYes", "yes"),
        ("<think>yes it is, but I was cut off", UNREADABLE),
        ("I'm sorry, but I can't help with that.", REFUSED),
        ("I\u2019m unable to view images", REFUSED),
        ("I cannot say yes or no", REFUSED),
        ("yes no", UNREADABLE),
        ("yesterday, nothing", UNREADABLE),
        ("a dog on a beach", UNREADABLE),
        ("", UNREADABLE),
        ("\ufffd\x00{]", UNREADABLE),
    ],
)
def test_an_answer_to_yes_or_no(text, answer):
    assert chosen(said(text), YES_OR_NO) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("First", "first"),
        ("The second picture.", "second"),
        ("tie!", "tie"),
        ("Second: it shows all of the first half", "second"),
        ("The first is better than the second", UNREADABLE),
        ("A", UNREADABLE),
        ("Neither", UNREADABLE),
        ("I can't compare people", REFUSED),
    ],
)
def test_an_answer_to_which_of_two(text, answer):
    assert chosen(said(text), FIRST_OF_TWO) == answer


def test_what_the_judge_itself_calls_a_refusal_is_one_whatever_it_says():
    assert chosen(said("yes", refused=True), YES_OR_NO) == REFUSED


def test_the_ways_to_begin_a_choice_are_added_up():
    first = {
        "Yes": 0.5,
        " yes": 0.125,
        "\u2581Yes": 0.0625,
        "\u0120YES": 0.0625,
        "No": 0.125,
        "Yesterday": 0.1,
        "I": 0.01,
    }
    assert probabilities_of(said("Yes", first=first), YES_OR_NO) == {"yes": 0.75, "no": 0.125}
    assert probabilities_of(said("No", first={"no": 0.9}), YES_OR_NO) == {"yes": 0.0, "no": 0.9}


@pytest.mark.parametrize("first", [None, {}, {"<think>": 1.0}])
def test_without_a_choice_among_the_first_tokens_there_is_no_probability(first):
    assert probabilities_of(said("Yes", first=first), YES_OR_NO) is None
