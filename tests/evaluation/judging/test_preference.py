"""Which of two sets of pictures a judge prefers, in both orders: a real server that answers by rule."""

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from chat_server import Response, keep_shades, prefers_brighter, says, served, shades_elsewhere
from scipy.stats import binomtest

from microdit.evaluation.geneval.folders import FolderSubject
from microdit.evaluation.judging import server
from microdit.evaluation.judging.preference import Preference, most, shares, verdict_of
from microdit.evaluation.judging.questions import JudgeError
from microdit.evaluation.pictures import PicturesError
from microdit.evaluation.subject import KeptSubject, Subject
from microdit.kinds import SettingsError

PROMPTS = [f"picture {number}" for number in range(8)]
CATEGORIES = ["Animals"] * 5 + ["Food & Beverage"] * 3
OURS, THEIRS = [200, 200, 200, 200, 10, 10, 99, 99], [50, 50, 50, 50, 60, 60, 60, 99]  # 5 brighter, 2 darker, 1 alike


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(server, "FIRST_WAIT_S", 0.001)


@pytest.fixture
def prompts_file(tmp_path) -> Path:
    rows = [f"{prompt}\t{category}" for prompt, category in zip(PROMPTS, CATEGORIES, strict=True)]
    path = tmp_path / "PartiPrompts.tsv"
    path.write_text("\n".join(["Prompt\tCategory", *rows]) + "\n")
    return path


@pytest.fixture
def preferred(tmp_path, prompts_file):
    """preferred(rule, ...): the numbers, and what was asked, of our kept pictures against theirs."""
    keep_shades(tmp_path / "ours", "PartiPrompts", PROMPTS, OURS)
    keep_shades(tmp_path / "theirs", "PartiPrompts", PROMPTS, THEIRS)

    def ask(rule, subject=None, **changes):
        with served(rule) as there:
            metric = preference(prompts_file, there.address, **{"against": str(tmp_path / "theirs"), **changes})
            numbers, shown = metric.evaluate(subject or KeptSubject(tmp_path / "ours"))
        assert shown.size[0] > 2 * 256
        return {name.removeprefix("preference/"): value for name, value in numbers.items()}, there.requests

    return ask


def preference(file: Path, address: str | None, **changes) -> Preference:
    given = {"prompts_file": str(file), "prompts_per_category": None, "against": None, "votes": 1}
    judge = {"weights": "a-judge", "address": address}
    return Preference(**{**given, "temperature": 1.0, "judge": judge, "sampling": {"seed": 0}, **changes})


def test_wins_ties_and_losses_are_shares_with_binomial_intervals_also_by_category(preferred, tmp_path):
    numbers, requests = preferred(prefers_brighter)
    assert [numbers[name] for name in ("wins", "ties", "losses", "prompts", "unanswered")] == [
        5 / 8,
        1 / 8,
        2 / 8,
        8,
        0,
    ]
    interval = binomtest(5, 8).proportion_ci(0.95, method="wilson")
    assert (numbers["wins_low"], numbers["wins_high"]) == pytest.approx((interval.low, interval.high))
    assert numbers["losses_low"] < 2 / 8 < numbers["losses_high"]
    assert (numbers["Animals/wins"], numbers["Animals/losses"]) == (4 / 5, 1 / 5)
    assert [numbers[f"Food & Beverage/{name}"] for name in ("wins", "ties", "losses")] == [1 / 3] * 3
    assert numbers["first"] == 0.5
    # The first one asks whether there is a judge at all; the pair that is alike has one order.
    assert len(requests) == 1 + 15
    with (tmp_path / "ours/preference/categories.csv").open() as file:
        table = {row["category"]: row for row in csv.DictReader(file)}
    assert [table["all"][name] for name in ("prompts", "win", "tie", "loss", "unanswered")] == ["8", "5", "1", "2", "0"]
    assert float(table["Animals"]["wins_low"]) < 4 / 5 < float(table["Animals"]["wins_high"])
    lines = [json.loads(line) for line in (tmp_path / "ours/preference/results.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["win"] * 4 + ["loss"] * 2 + ["win", "tie"]
    assert (lines[0]["ours_first"], lines[0]["theirs_first"]) == (["first"], ["second"])


def test_each_pair_is_shown_in_both_orders_as_often_as_there_are_votes_each_another_draw(preferred):
    _, requests = preferred(prefers_brighter, votes=3)
    asked = [(tuple(r.shades), r.body["seed"]) for r in requests[1:] if "picture 0" in r.words]
    assert sorted(asked) == sorted(itertools.product([(200, 50), (50, 200)], range(3)))
    assert {request.body["temperature"] for request in requests[1:]} == {1.0}


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_who_goes_by_the_order_finds_ties_alone(place, preferred):
    numbers, _ = preferred(lambda request: says(place if len(request.shades) > 1 else "yes"), votes=3)
    assert (numbers["wins"], numbers["ties"], numbers["losses"]) == (0, 1, 0)
    assert numbers["first"] == (place == "first")


@pytest.mark.parametrize(
    ("response", "counted"),
    [
        (says("I'm sorry, I can't compare these."), "refused"),
        (Response(b'{"error": {"code": "content_policy_violation"}}', 400), "refused"),
        (says("Both are lovely, the first and the second"), "unreadable"),
        (says("\ufffd\ufffd {]"), "unreadable"),
    ],
)
def test_what_is_no_answer_is_counted_as_such_and_nobodys_loss(response, counted, preferred):
    def rule(request):
        return response if "picture 4" in request.words or "picture 0" in request.words else prefers_brighter(request)

    numbers, _ = preferred(rule)
    assert numbers[counted] == 4
    assert (numbers["prompts"], numbers["unanswered"]) == (6, 2)
    assert [numbers[name] for name in ("wins", "ties", "losses")] == [4 / 6, 1 / 6, 1 / 6]


def test_a_judge_who_refuses_one_order_has_judged_nothing_of_the_pair(preferred):
    def rule(request):
        if len(request.shades) == 2 and request.shades[0] > request.shades[1]:
            return says("I cannot answer")
        return prefers_brighter(request)

    numbers, _ = preferred(rule)
    assert (numbers["prompts"], numbers["unanswered"], numbers["refused"]) == (1, 7, 7)  # the one that is alike


def test_a_judge_who_never_answers_is_an_error_with_its_words(preferred):
    with pytest.raises(JudgeError, match="chooses neither picture, and no tie, such as 'a dog'"):
        preferred(lambda request: says("a dog"))


def test_a_server_with_bad_days_gives_the_same_numbers_and_nothing_is_asked_twice(preferred, tmp_path):
    seen: Counter = Counter()

    def rule(request):
        seen["all"] += 1
        if seen["all"] % 3 == 0:
            return Response(b"busy", 429, [("Retry-After", "0.01")])
        if seen["all"] % 5 == 0:
            return Response(b"oops", 500)
        if seen["all"] % 7 == 0:
            return Response(b"<html>garbage</html>")
        seen[request.words, tuple(request.shades)] += 1
        return prefers_brighter(request)

    numbers, _ = preferred(rule)
    assert numbers["wins"] == 5 / 8
    assert max(times for what, times in seen.items() if what != "all") == 1
    again, requests = preferred(rule)
    assert (again, requests) == (numbers, [])


def test_pictures_made_elsewhere_are_compared_by_their_prompts_in_any_order(preferred, tmp_path):
    turned = list(zip(PROMPTS, [[shade, 0] for shade in THEIRS], strict=True))[::-1]
    theirs = shades_elsewhere(tmp_path / "elsewhere", *map(list, zip(*turned, strict=True)))  # type: ignore[arg-type]
    numbers, _ = preferred(prefers_brighter, against=str(theirs))
    assert (numbers["wins"], numbers["losses"]) == (5 / 8, 2 / 8)
    ours = FolderSubject(shades_elsewhere(tmp_path / "mine", PROMPTS, [[shade] for shade in OURS]), tmp_path / "kept")
    assert preferred(prefers_brighter, ours)[0] == numbers
    (theirs / "00007/metadata.jsonl").write_text('{"prompt": "another"}')
    with pytest.raises(PicturesError, match=r"elsewhere holds 0 pictures, not 1, of the prompt 'picture 0'"):
        preferred(prefers_brighter, against=str(theirs))


def test_a_run_draws_its_own_pictures_and_a_model_on_this_machine_judges_them(
    pipeline, prompts_file, tmp_path, tmp_path_factory
):
    pytest.importorskip("transformers")
    from small_judge import write_small_judge

    weights = write_small_judge(tmp_path_factory.mktemp("judge"), ("first", "second"))
    theirs = keep_shades(tmp_path / "theirs", "PartiPrompts", PROMPTS, THEIRS)
    judge = {"weights": str(weights), "address": None}
    sampling = {"num_inference_steps": 2, "seed": 0}
    metric = preference(prompts_file, None, against=str(theirs), judge=judge, sampling=sampling, votes=2)
    metric.ask(pipeline)
    numbers, _ = metric.evaluate(Subject(pipeline, tmp_path / "run"))
    assert sum(numbers[f"preference/{name}"] for name in ("wins", "ties", "losses")) == pytest.approx(1)
    assert numbers["preference/prompts"] + numbers["preference/unanswered"] == 8
    assert len((tmp_path / "run/preference/asked.jsonl").read_text().splitlines()) == 8 * 2 * 2
    assert metric.evaluate(KeptSubject(tmp_path / "run"))[0] == numbers


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"against": None}, SettingsError, r"metrics\.preference\.against=FOLDER is needed"),
        ({"against": "./nowhere"}, PicturesError, r"metrics\.preference\.against=nowhere is no folder"),
        ({"prompts_file": "nowhere.tsv"}, FileNotFoundError, r"prompts_file: there is no file nowhere\.tsv.*parti"),
        ({"judge": {"weights": "./nowhere", "address": None}}, FileNotFoundError, r"judge\.weights=\./nowhere"),
        ({"judge": {"weights": "a", "address": "http://127.0.0.1:9/v1"}}, JudgeError, "no answer in 6 attempts"),
    ],
)
def test_what_is_missing_is_told_before_training_and_before_anything_is_drawn(
    changes, error, told, pipeline, prompts_file, tmp_path
):
    theirs = keep_shades(tmp_path / "theirs", "PartiPrompts", PROMPTS, THEIRS)
    changes = {"against": str(theirs), "prompts_file": str(prompts_file), **changes}
    metric = preference(prompts_file, "http://127.0.0.1:9/v1", **changes)
    for use in (lambda: metric.ask(pipeline), lambda: metric.evaluate(Subject(pipeline, tmp_path / "run"))):
        with pytest.raises(error, match=told):
            use()
    assert not list((tmp_path / "run").rglob("*.tar"))


@pytest.mark.parametrize(
    ("ours_first", "theirs_first", "verdict"),
    [
        (["first"], ["second"], "win"),
        (["second"], ["first"], "loss"),
        (["first"], ["first"], "tie"),
        (["tie"], ["tie"], "tie"),
        (["tie"], ["second"], "tie"),
        (["first", "first", "second"], ["second", "tie", "second"], "win"),
        (["first", "refused", "refused"], ["second", "unreadable", "second"], "win"),
        (["first", "second"], ["second", "second"], "tie"),
        (["refused"], ["second"], "unanswered"),
        (["unreadable"], ["refused"], "unanswered"),
    ],
)
def test_a_verdict_is_what_most_votes_say_in_both_orders(ours_first, theirs_first, verdict):
    def answers(said):
        return [{"answer": one} for one in said]

    assert verdict_of(answers(ours_first), answers(theirs_first)) == verdict


def test_most_is_more_than_any_other():
    assert most(["first", "second", "tie"], "win", "loss") == "tie"
    assert most(["first", "first", "second", "tie"], "win", "loss") == "win"


def test_an_interval_holds_the_true_share_as_often_as_it_says():
    random, held = np.random.default_rng(0), 0
    for _ in range(300):
        wins = int(random.binomial(200, 0.63))
        share = shares(["win"] * wins + ["loss"] * (200 - wins))["wins"]
        held += share.low <= 0.63 <= share.high
    assert 0.91 <= held / 300 <= 0.99
    assert shares(["unanswered"]) == {}
