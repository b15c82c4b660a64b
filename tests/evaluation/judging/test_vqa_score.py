"""VQAScore: the probability of yes, from a server that tells probabilities and from a model on this machine."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import Response, keep_shades, number_in, says, sees_what_is_bright, served, shades_elsewhere

from microdit.evaluation.geneval.folders import FolderSubject
from microdit.evaluation.judging.judges import read_judge
from microdit.evaluation.judging.questions import YES_OR_NO, JudgeError, Question
from microdit.evaluation.judging.vqa_score import VqaScore
from microdit.evaluation.pictures import PicturesError
from microdit.evaluation.subject import KeptSubject, Subject

PROMPTS = [f"picture {number}" for number in range(6)]
SHADES = [0, 51, 102, 153, 204, 255]


@pytest.fixture
def prompts_file(tmp_path) -> Path:
    path = tmp_path / "Parti.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in zip(["Prompt", *PROMPTS], ["Category", *"AAABBB"], strict=True)))
    return path


def score(prompts_file: Path, address: str | None, **changes) -> VqaScore:
    judge = {"weights": "a-judge", "address": address}
    given = {"prompts_file": str(prompts_file), "prompts_per_category": None, "judge": judge, "sampling": {"seed": 0}}
    return VqaScore(**{**given, **changes})


@pytest.fixture
def scored(tmp_path, prompts_file):
    """scored(rule): the numbers, and what was asked, of kept pictures."""
    keep_shades(tmp_path / "kept", "Parti", PROMPTS, SHADES)

    def ask(rule, subject=None, **changes):
        with served(rule) as there:
            numbers, shown = score(prompts_file, there.address, **changes).evaluate(
                subject or KeptSubject(tmp_path / "kept")
            )
        assert shown.size[0] > 256
        return numbers, there.requests

    return ask


def test_it_is_the_mean_probability_of_yes_also_by_category(scored, tmp_path):
    numbers, requests = scored(sees_what_is_bright)
    expected = np.clip(np.array(SHADES) / 255, 0.01, 0.99)
    assert numbers["vqa_score"] == pytest.approx(expected.mean())
    assert numbers["vqa_score/A"] == pytest.approx(expected[:3].mean())
    assert numbers["vqa_score/B"] == pytest.approx(expected[3:].mean())
    assert [numbers[f"vqa_score/{name}"] for name in ("pictures", "refused", "unreadable")] == [6, 0, 0]
    asked = {request.words: request.shades for request in requests[1:]}
    assert asked['Does this figure show "picture 3"? Please answer yes or no.'] == [153]
    lines = [json.loads(line) for line in (tmp_path / "kept/vqa_score/results.jsonl").read_text().splitlines()]
    assert [line["yes"] for line in lines] == pytest.approx(expected)
    assert scored(sees_what_is_bright) == (numbers, [])


def test_refusals_and_what_cannot_be_read_are_counted_and_in_no_mean(scored):
    def rule(request) -> Response:
        if "picture" in request.words and 'show "' in request.words:
            if number_in(request.words) == 0:
                return says("I'm sorry, I can't.", {"I": 0.9, "No": 0.1})
            if number_in(request.words) == 1:
                return says("A grey square", {"A": 1.0})
        return sees_what_is_bright(request)

    numbers, _ = scored(rule)
    assert numbers["vqa_score"] == pytest.approx(np.clip(np.array(SHADES) / 255, 0.01, 0.99)[2:].mean())
    assert [numbers[f"vqa_score/{name}"] for name in ("pictures", "refused", "unreadable")] == [4, 1, 1]


def test_a_server_that_tells_no_probabilities_is_told_of(scored):
    with pytest.raises(JudgeError, match=r"tells no probabilities of its answers, such as 'Yes': .*logprobs"):
        scored(lambda request: says("Yes"))


def test_pictures_made_elsewhere_are_judged(scored, tmp_path):
    numbers, _ = scored(sees_what_is_bright)
    elsewhere = shades_elsewhere(tmp_path / "elsewhere", PROMPTS, [[shade] for shade in SHADES])
    assert scored(sees_what_is_bright, FolderSubject(elsewhere, tmp_path / "out"))[0] == numbers
    (elsewhere / "00000/samples/0000.png").write_bytes(b"no picture")
    with pytest.raises(PicturesError, match=r"0000\.png"):
        scored(sees_what_is_bright, FolderSubject(elsewhere, tmp_path / "out"))


def test_pictures_are_drawn_and_judged_by_a_model_on_this_machine(judge_weights, pipeline, prompts_file, tmp_path):
    judge = {"weights": judge_weights, "address": None}
    sampling = {"num_inference_steps": 2, "seed": 0}
    metric = score(prompts_file, None, judge=judge, sampling=sampling, prompts_per_category=2)
    metric.ask(pipeline)
    numbers, _ = metric.evaluate(Subject(pipeline, tmp_path / "run"))
    kept = KeptSubject(tmp_path / "run")
    texts = ["picture 0", "picture 1", "picture 3", "picture 4"]
    local = read_judge(judge, "judge", torch.device("cpu"))  # type: ignore[arg-type]
    pictures = list(kept.pictures("Parti", texts, {"seed": 0}).decoded(range(4)))
    expected = []
    for text, picture in zip(texts, pictures, strict=True):
        words = f'Does this figure show "{text}"? Please answer yes or no.'
        first = local.ask(Question((picture,), words, YES_OR_NO, "", probable=True)).first or {}
        expected.append(sum(share for word, share in first.items() if word.casefold() == "yes"))
    assert numbers["vqa_score"] == pytest.approx(np.mean(expected))
    assert metric.evaluate(kept)[0] == numbers
