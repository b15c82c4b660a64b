"""DPG-Bench: questions that depend on each other, answered by a real server by rule."""

import json

import numpy as np
import pytest
from chat_server import Response, keep_shades, says, served

from microdit.evaluation.judging.dpg import Dpg, by_category, held, overall, score
from microdit.evaluation.judging.prompts import Asked, Proposition
from microdit.evaluation.judging.questions import JudgeError
from microdit.evaluation.subject import KeptSubject, Subject

ASKED = Asked(
    "dogs",
    "two red dogs",
    (
        Proposition(1, (), "entity - whole", "Are there dogs?"),
        Proposition(2, (1,), "attribute - color", "Are they red?"),
        Proposition(3, (2,), "attribute - state", "Do the red ones run?"),
        Proposition(4, (), "global", "Is it a photo?"),
    ),
)


@pytest.mark.parametrize(
    ("answers", "counted", "share"),
    [
        ((True, True, True, True), (True, True, True, True), 1.0),
        ((False, True, True, True), (False, False, False, True), 0.25),  # also what depends on what depends on it
        ((True, False, True, False), (True, False, False, False), 0.25),
        ((True, True, False, True), (True, True, False, True), 0.75),
        ((None, True, True, True), (None, True, True, True), 1.0),  # not answered is not failed
        ((None, None, None, None), (None, None, None, None), None),
        ((False, None, None, None), (False, False, False, None), 0.0),
    ],
)
def test_a_question_fails_with_what_it_depends_on(answers, counted, share):
    truths = dict(zip((1, 2, 3, 4), answers, strict=True))
    assert tuple(held(ASKED, truths).values()) == counted
    assert score(ASKED, truths) == share


def test_the_overall_score_is_a_mean_over_prompts_of_means_over_pictures():
    assert overall([1.0, 0.5, 0.0, None], prompts=2) == pytest.approx(100 * np.mean([0.5, 0.5]))
    assert overall([1.0, 0.0, 1.0, 0.5, None, None], prompts=2) == pytest.approx(100 * np.mean([1.0, 0.25]))


def test_categories_count_answers_as_they_are_whatever_they_depend_on():
    truths = {1: False, 2: True, 3: None, 4: True}
    assert by_category([ASKED, ASKED], [truths, dict.fromkeys((1, 2, 3, 4), False)]) == {
        **{"attribute": pytest.approx(100 / 3), "entity": 0.0, "global": 50.0}
    }


TABLE = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language\n"
    "dogs,,,1,0,,,entity - whole (dogs),Are there dogs?\n"
    "dogs,,,2,1,,,attribute - color (dogs),Are they red?\n"
    "cat,,,1,0,,,entity - whole (cat),Is there a cat?\n"
)


@pytest.fixture
def dpg(tmp_path):
    """dpg(rule, subject): the numbers, and what was asked."""
    (tmp_path / "prompts").mkdir()
    for name, text in (("dogs", "two red dogs"), ("cat", "a cat")):
        (tmp_path / f"prompts/{name}.txt").write_text(text)
    (tmp_path / "dpg_bench.csv").write_text(TABLE)

    def ask(rule, subject=None, judge=None, **changes):
        with served(rule) as there:
            given = {
                **{"prompts_folder": str(tmp_path / "prompts"), "questions_file": str(tmp_path / "dpg_bench.csv")},
                **{"prompts": None, "pictures_per_prompt": 2, "sampling": {"seed": 0, "num_inference_steps": 2}},
                "judge": judge or {"weights": "a-judge", "address": there.address},
            }
            numbers, shown = Dpg(**{**given, **changes}).evaluate(subject or KeptSubject(tmp_path / "kept"))
        assert shown.size[0] > 256
        return {name.removeprefix("dpg/"): value for name, value in numbers.items()}, there.requests

    keep_shades(tmp_path / "kept", "dpg", ["two red dogs", "a cat"] * 2, [10, 60, 200, 250])
    return ask


def by_shade(request) -> Response:
    """There are dogs and cats in bright pictures, and everything is red."""
    return says("Yes" if "red" in request.words or request.shades[0] > 100 else "No")


def test_each_picture_is_asked_the_questions_of_its_prompt(dpg, tmp_path):
    numbers, requests = dpg(by_shade)
    assert sorted((request.shades[0], request.words) for request in requests[1:]) == sorted(
        (shade, f"{words} Answer with yes or no alone.")
        for shade, words in [
            *((shade, words) for shade in (10, 200) for words in ("Are there dogs?", "Are they red?")),
            *((shade, "Is there a cat?") for shade in (60, 250)),
        ]
    )
    # Dogs: 0 of 2 in the dark, since what is not there is not red, and 2 of 2; the cat: no and yes.
    assert numbers == {
        **{"overall": pytest.approx(50), "attribute": 100, "entity": 50, "pictures": 4, "refused": 0, "unreadable": 0}
    }
    lines = [json.loads(line) for line in (tmp_path / "kept/dpg/results.jsonl").read_text().splitlines()]
    assert [(line["item"], line["score"]) for line in lines] == [("dogs", 0), ("cat", 0), ("dogs", 1), ("cat", 1)]
    assert dpg(by_shade) == (numbers, [])


def test_an_answer_that_is_none_is_counted_as_such_and_fails_nothing(dpg):
    def rule(request) -> Response:
        if "dogs?" in request.words:
            return says("I'm unable to view images.")
        return says("a cat?") if request.shades == [60] else by_shade(request)

    numbers, _ = dpg(rule)
    assert (numbers["refused"], numbers["unreadable"]) == (2, 1)
    assert numbers["overall"] == pytest.approx(100)  # red is red, and the cat in the bright picture is there
    assert numbers["entity"] == 100


def test_of_the_prompts_the_first_can_be_taken(dpg):
    numbers, requests = dpg(by_shade, prompts=1, pictures_per_prompt=1)
    assert (numbers["pictures"], numbers["overall"], len(requests)) == (1, 0, 1 + 2)


def test_a_judge_who_never_says_yes_or_no_is_told_of(dpg):
    with pytest.raises(JudgeError, match="answers with neither yes nor no, such as 'hm'"):
        dpg(lambda request: says("hm"))


def test_pictures_are_drawn_and_judged_by_a_model_on_this_machine(dpg, judge_weights, pipeline, tmp_path):
    judge = {"weights": judge_weights, "address": None}
    numbers, requests = dpg(by_shade, Subject(pipeline, tmp_path / "run"), judge)
    assert requests == []
    assert numbers["pictures"] == 4
    assert 0 <= numbers["overall"] <= 100
    assert dpg(by_shade, KeptSubject(tmp_path / "run"), judge)[0] == numbers
