"""Several processes that evaluate together have the numbers of one, to the last bit, and nothing is done twice."""

import json
import shutil
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from chat_server import says, served
from compositions import plain
from evaluating import evaluate_as_rank, fail_as_rank, judge_as_rank
from judging import bright_dogs, pictures_of_dogs
from PIL import Image
from small_clip import write_small_clip
from small_mask2former import write_small_mask2former
from small_pick_score import write_small_pick_score

from microdit.evaluation.geneval.verdicts import judged
from microdit.evaluation.judging.judges import SERVER_AT_ONCE
from microdit.evaluation.pictures import PicturesError
from microdit.evaluation.sharing import ALONE, Ranks, batches_of
from microdit.evaluation.subject import Subject, silent
from microdit.files import DamagedFileError, read_json, sealed, unsealed

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 2.0, "seed": 0}
SHAPES = {
    "compositional": {
        "_target_": "microdit.evaluation.shapes.compositional.ShapesCompositional",
        "domains": ["synthetic"],
        "prompts_per_skill": 3,
        "colour_prompts": 4,
        "sampling": SAMPLING,
    },
    "shapes_frechet": {
        "_target_": "microdit.evaluation.shapes.frechet.ShapesFrechet",
        "domains": ["synthetic"],
        "count": 20,
        "reference_count": 300,
        "sampling": SAMPLING,
    },
    "shapes_loss": {
        "_target_": "microdit.evaluation.shapes.loss.ShapesDenoisingLoss",
        "domains": ["synthetic"],
        "count": 150,
        "noise_levels": [0.5, 2.0],
        "seed": 0,
    },
}


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> str:
    return str(write_small_clip(tmp_path_factory.mktemp("clip"), embed_dim=4))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> dict:
    """Settings of a source of 150 captioned pictures."""
    folder = tmp_path_factory.mktemp("photos") / "pictures"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(150):
        pixels = np.clip(random.normal(number, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"picture {number}")
    return {"_target_": "microdit.data.sources.folder.FolderSource", "path": str(folder)}


@pytest.fixture
def of_paper(photographs, towers, tmp_path_factory) -> dict:
    """metrics=paper and CMMD, each of its networks small, and a CLIP in the place of Inception."""
    pytest.importorskip("transformers", reason="GenEval's detector is of transformers: pip install 'microdit[judges]'")
    of_clip = {"_target_": "microdit.evaluation.clip.OpenClipFeatures", "weights": towers}
    common = {"source": photographs, "count": 150, "sampling": SAMPLING}
    few = {"prompts_per_tag": 1, "pictures_per_prompt": 1, "sampling": SAMPLING}
    detector = str(write_small_mask2former(tmp_path_factory.mktemp("detector")))
    small = {
        "fid": {**common, "features": {**of_clip, "name": "instead"}},
        "clip_fid": {**common, "features": {**of_clip, "name": "clip"}},
        "cmmd": {**common, "features": {**of_clip, "name": "clip"}},
        "clip_score": {**common, "weights": towers},
        "geneval": {**few, "detector_weights": detector, "clip_weights": towers},
    }
    metrics = plain("metrics=[paper,cmmd]", config="evaluate")["metrics"]
    return {name: {**given, **small[name]} for name, given in metrics.items()}


@pytest.fixture
def of_prompts(tmp_path_factory, tmp_path) -> dict:
    """PickScore of pictures of 70 prompts, which is more than two batches."""
    pytest.importorskip("transformers", reason="PickScore is a model of transformers: pip install 'microdit[judges]'")
    weights = str(write_small_pick_score(tmp_path_factory.mktemp("pick")))
    (tmp_path / "some.txt").write_text("\n".join(f"picture {number}" for number in range(70)))
    scorer = {"_target_": "microdit.evaluation.judging.learned.PickScore", "weights": weights, "processor": weights}
    given = {"prompts_file": str(tmp_path / "some.txt"), "prompts_per_category": None, "scorer": scorer}
    learned = "microdit.evaluation.judging.learned.LearnedScore"
    return {"pick_score": {"_target_": learned, **given, "sampling": SAMPLING}}


@pytest.fixture
def evaluated(pipeline, run_as_ranks, tmp_path):
    """evaluated(ranks, metrics, name): the numbers in the record of a run that so many processes evaluated, none where
    each was killed when it had found out so many verdicts, `killed_at`."""

    def run(ranks: int, metrics: dict, name: str | None = None, killed_at: int | None = None) -> dict[str, float]:
        folder = tmp_path / (name or f"of_{ranks}")
        if not folder.exists():
            pipeline.save(folder)
        arguments = {"checkpoint": str(folder), "pictures": None, "weights": ["ema"], "metrics": metrics}
        arguments |= {"sampling": {}, "batch_size": 8, "device": "cpu"}
        codes = run_as_ranks(evaluate_as_rank, ranks, arguments, killed_at)
        assert codes == [0 if killed_at is None else -signal.SIGKILL] * ranks
        return read_json(folder / "result.json", "") if killed_at is None else {}

    return run


def files_of(run: Path) -> dict[str, bytes]:
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted((run / "evaluation").rglob("*"))
        if path.is_file() and path.name not in ("history.jsonl", "judged.jsonl", "asked.jsonl")
    }


@pytest.mark.parametrize("kind", ["shapes", "paper", "prompts"])
def test_two_processes_have_the_numbers_and_pictures_of_one_to_the_last_bit(
    evaluated, photographs, tmp_path, kind, request
):
    metrics = SHAPES if kind == "shapes" else request.getfixturevalue(f"of_{kind}")
    one = evaluated(1, metrics)
    shutil.rmtree(f"{photographs['path']}.statistics", ignore_errors=True)
    two = evaluated(2, metrics)
    assert one == two
    assert len(one) >= len(metrics)
    assert files_of(tmp_path / "of_1") == files_of(tmp_path / "of_2")
    assert not list((tmp_path / "of_2").rglob("*.unfinished"))


def of_vqa_score(prompts: Path, address: str) -> dict:
    judge = {"weights": "someone", "address": address}
    settings = {"prompts_file": str(prompts), "prompts_per_category": None, "judge": judge, "sampling": SAMPLING}
    return {"vqa_score": {"_target_": "microdit.evaluation.judging.vqa_score.VqaScore", **settings}}


@pytest.fixture
def counting_judge(tmp_path):
    """Metrics by a judge of 40 pictures, and how often it was asked about each."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"picture {number}" for number in range(40)))
    asked: Counter[str] = Counter()

    def rule(request):
        asked[request.words] += 1
        share = 0.1 + len(request.words) % 7 / 10
        return says("Yes", {"Yes": share, "No": 1 - share})

    with served(rule) as there:
        metrics = of_vqa_score(prompts, there.address)
        yield metrics, asked


def test_a_judge_is_asked_once_by_whichever_rank(evaluated, counting_judge, tmp_path):
    metrics, asked = counting_judge
    one = evaluated(1, metrics)
    before = Counter(asked)
    assert evaluated(2, metrics) == one
    whether_it_is_there = next(words for words in asked if "white" in words)
    assert {words: asked[words] - before[words] for words in asked} == dict.fromkeys(asked, 1)
    assert before[whether_it_is_there] == 1
    again = sum(asked.values())
    assert evaluated(2, metrics, "of_2") == one
    assert sum(asked.values()) == again
    folder = tmp_path / "of_2/evaluation/vqa_score"
    assert sorted(path.name for path in folder.iterdir()) == ["asked.jsonl", "results.jsonl"]
    assert len((folder / "asked.jsonl").read_text().splitlines()) == 40


def test_an_evaluation_that_is_killed_goes_on_with_the_same_numbers_and_asks_nothing_twice(
    evaluated, counting_judge, tmp_path
):
    metrics, asked = counting_judge
    whole = evaluated(2, metrics)
    before = Counter(asked)
    evaluated(2, metrics, "killed", killed_at=6)
    assert 12 <= sum((asked - before).values()) < 40
    assert evaluated(2, metrics, "killed") == whole
    twice = [words for words in asked if asked[words] - before[words] > 1]
    assert len(twice) <= SERVER_AT_ONCE  # those that were under way, whose answers nobody heard
    assert {words: before[words] for words in asked} == dict.fromkeys(asked, 1)
    assert sum((asked - before).values()) <= 41 + SERVER_AT_ONCE
    assert sealed_lines(tmp_path / "killed/evaluation/vqa_score/asked.jsonl") == 40


def test_killed_in_the_middle_it_goes_on_and_judges_nothing_twice(run_as_ranks, tmp_path):
    folder, requests = tmp_path / "judged", tmp_path / "requests"
    codes = run_as_ranks(judge_as_rank, 2, folder, requests, 30, 6)
    assert codes == [-signal.SIGKILL] * 2
    assert len(requests.read_text().splitlines()) == 10
    assert {path.name: sealed_lines(path) for path in folder.iterdir()} == {"judged.jsonl": 5, "judged.rank_1.jsonl": 5}
    assert run_as_ranks(judge_as_rank, 2, folder, requests, 30, None) == [0, 0]
    assert Counter(requests.read_text().split()).most_common(1)[0][1] == 1
    assert len(requests.read_text().split()) == 30
    assert run_as_ranks(judge_as_rank, 1, folder, requests, 30, None) == [0]  # whoever reads it alone
    assert len(requests.read_text().split()) == 30
    assert sorted(path.name for path in folder.iterdir()) == ["judged.jsonl", "results.jsonl"]
    assert sealed_lines(folder / "judged.jsonl") == 30
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["filename"] for line in lines] == [f"{number}.png" for number in range(30)]


def sealed_lines(path: Path) -> int:
    """How many lines of a file have their checksum. ValueError for one that has another's."""
    lines = map(json.loads, path.read_text().splitlines())
    return sum(sealed(unsealed(line)) == line for line in lines)


def test_what_another_rank_left_is_told_where_it_is_not_as_it_was_written(tmp_path):
    def judge_again() -> None:
        judged(tmp_path, pictures_of_dogs(4), 4, bright_dogs(lambda shade: None), silent)

    judge_again()
    left = (tmp_path / "judged.jsonl").rename(tmp_path / "judged.rank_1.jsonl")
    left.write_text(left.read_text().replace('"correct": true', '"correct": false', 1))
    with pytest.raises(DamagedFileError, match=r"judged\.rank_1\.jsonl is damaged \(line 3: its checksum is another"):
        judge_again()


def test_drawing_goes_on_after_the_batches_that_are_there(pipeline, tmp_path, monkeypatch):
    prompts = [f"{number} rings" for number in range(7)]
    whole = Subject(pipeline, tmp_path / "whole", batch_size=2).pictures("some", prompts, SAMPLING).all()
    drawn, usual = [], Subject.drawn

    def drawn_until(self, prompts, sampling, batch, *rest):
        drawn.append(batch)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return usual(self, prompts, sampling, batch, *rest)

    monkeypatch.setattr(Subject, "drawn", drawn_until)
    with pytest.raises(KeyboardInterrupt):
        Subject(pipeline, tmp_path / "cut", batch_size=2).pictures("some", prompts, SAMPLING)
    assert not (tmp_path / "cut/some.tar").exists()
    again = Subject(pipeline, tmp_path / "cut", batch_size=2).pictures("some", prompts, SAMPLING)
    assert [batch.start for batch in drawn] == [0, 2, 4, 4, 6]
    assert torch.equal(again.all(), whole)
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["some.json", "some.tar"]


@pytest.mark.parametrize("change", ["weights", "prompts", "sampling", "batch"])
def test_unfinished_pictures_of_something_else_are_not_gone_on_with(pipeline, tmp_path, monkeypatch, change):
    prompts, sampling, size = ["a ring", "two rings", "a disc"], dict(SAMPLING), 1
    monkeypatch.setattr(Subject, "draw", lambda self, tar, making, used: half_drawn(self, tar, making, used))
    with pytest.raises(KeyboardInterrupt):
        Subject(pipeline, tmp_path, batch_size=1).pictures("some", prompts, sampling)
    monkeypatch.undo()
    assert list(tmp_path.glob(".some.unfinished/*.tar"))
    if change == "weights":
        with torch.no_grad():
            pipeline.dit.final_layer.linear.weight.add_(0.3)
    elif change == "prompts":
        prompts = ["a cross", *prompts[1:]]
    elif change == "sampling":
        sampling["seed"] = 1
    else:
        size = 2
    there = Subject(pipeline, tmp_path, batch_size=size).pictures("some", prompts, sampling)
    expected = Subject(pipeline, tmp_path / "new", batch_size=size).pictures("some", prompts, sampling)
    assert torch.equal(there.all(), expected.all())


@pytest.mark.parametrize("kind", ["tar", "hash"])
def test_unfinished_pictures_are_not_gone_on_with_where_a_bit_is_another(pipeline, tmp_path, monkeypatch, kind):
    prompts = ["a ring", "two rings", "a disc"]
    monkeypatch.setattr(Subject, "draw", lambda self, tar, making, used: half_drawn(self, tar, making, used))
    with pytest.raises(KeyboardInterrupt):
        Subject(pipeline, tmp_path, batch_size=1).pictures("some", prompts, SAMPLING)
    monkeypatch.undo()
    first = min(tmp_path.glob(f".some.unfinished/*.{kind}"))
    content = bytearray(first.read_bytes())
    content[900 if kind == "tar" else 3] ^= 1
    for damaged in (content, b""):
        first.write_bytes(damaged)
        with pytest.raises(PicturesError, match=r"not as it was written.*evaluate again"):
            Subject(pipeline, tmp_path, batch_size=1).pictures("some", prompts, SAMPLING)


def half_drawn(subject: Subject, tar: Path, making, sampling) -> None:
    from microdit.evaluation.pictures import Unfinished

    batches = batches_of(len(making.prompts), 1)
    unfinished = Unfinished(tar, making)
    unfinished.begin(batches)
    for batch in batches[:2]:
        unfinished.add(batch, subject.drawn(making.prompts, sampling, batch, 0, 1))
    raise KeyboardInterrupt


def test_shares_are_dealt_out_in_turn_and_put_together_in_order():
    done = [[number for number in range(7) if Ranks(rank, 3).has(number)] for rank in range(3)]
    assert done == [[0, 3, 6], [1, 4], [2, 5]]
    assert ALONE.each(iter("abc"), str.upper) == ["A", "B", "C"]
    assert batches_of(5, 2) == [range(0, 2), range(2, 4), range(4, 5)]


def test_what_the_first_cannot_do_is_told_to_all(run_as_ranks, tmp_path):
    assert run_as_ranks(fail_as_rank, 2, tmp_path) == [0, 0]
    assert [json.loads((tmp_path / f"gathered_{rank}").read_text()) for rank in (0, 1)] == [[0, 1], [0, 1]]
    assert (tmp_path / "failed_0").read_text().startswith("FileNotFoundError: ")
    assert (tmp_path / "failed_1").read_text().startswith("OtherRankError: rank 0: FileNotFoundError: ")
