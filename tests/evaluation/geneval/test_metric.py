"""The metric from prompts to numbers, with small random networks; and pictures that were made elsewhere."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microdit.evaluation.geneval import metric, networks
from microdit.evaluation.geneval.folders import FolderSubject, is_folder_of_prompts
from microdit.evaluation.geneval.metric import GenEval, annotated, in_words
from microdit.evaluation.geneval.prompts import TAGS, of_each_tag, read_samples, recipe
from microdit.evaluation.pictures import PicturesError
from microdit.evaluation.shapes.compositional import ShapesCompositional
from microdit.evaluation.subject import KeptSubject, Subject
from microdit.files import DamagedFileError

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 1.5, "seed": 0}


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr(networks, "SHORTEST_PX", 64)


@pytest.fixture
def geneval(detector_weights, clip_weights):
    def make(**changes) -> GenEval:
        given = {"prompts_file": None, "prompts_per_tag": 1, "pictures_per_prompt": 1, "sampling": SAMPLING}
        return GenEval(**{**given, "detector_weights": detector_weights, "clip_weights": clip_weights, **changes})

    return make


@pytest.fixture
def judged_pictures(monkeypatch) -> list[tuple[int, ...]]:
    """The sizes of the pictures that the detector was asked about, from now on."""
    sizes = []
    seen_in = networks.objects_in
    monkeypatch.setattr(networks, "objects_in", lambda picture, d: sizes.append(picture.shape) or seen_in(picture, d))
    return sizes


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_are_the_shares_of_right_pictures(geneval, pipeline, tmp_path):
    numbers, shown = geneval(pictures_per_prompt=2).evaluate(Subject(pipeline, tmp_path))
    verdicts = lines(tmp_path / "geneval/results.jsonl")
    assert list(numbers) == [f"geneval/{name}" for name in (*TAGS, "overall", "pictures")]
    assert numbers["geneval/pictures"] == len(verdicts) == 12
    for tag in TAGS:
        right = [verdict["correct"] for verdict in verdicts if verdict["tag"] == tag]
        assert numbers[f"geneval/{tag}"] == np.mean(right)
    assert numbers["geneval/overall"] == pytest.approx(np.mean([numbers[f"geneval/{tag}"] for tag in TAGS]))
    asked = [sample["prompt"] for sample in of_each_tag(recipe(), 1)]
    assert [verdict["prompt"] for verdict in verdicts] == asked * 2
    assert any(json.loads(verdict["details"]) for verdict in verdicts)  # else nothing was seen
    assert shown.size[0] > 2 * metric.SHOWN_PX


def test_pictures_are_judged_once_and_again_without_the_network(geneval, pipeline, tmp_path, judged_pictures):
    first, _ = geneval(pictures_per_prompt=2).evaluate(Subject(pipeline, tmp_path))
    assert len(judged_pictures) == 12
    assert geneval(pictures_per_prompt=2).evaluate(KeptSubject(tmp_path))[0] == first
    assert len(lines(tmp_path / "geneval/results.jsonl")) == 12
    assert geneval().evaluate(Subject(pipeline, tmp_path))[0]["geneval/pictures"] == 6  # the first of each prompt
    assert len(judged_pictures) == 12


def test_other_prompts_are_read_from_a_file(geneval, pipeline, tmp_path):
    asked = recipe()[100:103]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in asked))
    numbers, _ = geneval(prompts_file=str(tmp_path / "prompts.jsonl"), prompts_per_tag=None).evaluate(
        Subject(pipeline, tmp_path)
    )
    assert numbers.keys() == {"geneval/two_object", "geneval/overall", "geneval/pictures"}
    assert [line["prompt"] for line in lines(tmp_path / "geneval/results.jsonl")] == [each["prompt"] for each in asked]


def test_what_is_missing_is_told_before_training_and_before_anything_is_drawn(geneval, pipeline, tmp_path):
    geneval().ask(pipeline)
    for changes in (
        {"detector_weights": "./nowhere"},
        {"clip_weights": "./nowhere"},
        {"prompts_file": "nowhere.jsonl"},
    ):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            geneval(**changes).ask(pipeline)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            geneval(**changes).evaluate(Subject(pipeline, tmp_path))
    assert not list(tmp_path.iterdir())


def test_progress_goes_on_to_the_pictures_judged(geneval, pipeline, tmp_path):
    told = []
    subject = Subject(pipeline, tmp_path, progress=lambda *given: told.append(given))
    geneval().evaluate(subject)
    assert told[-1] == (6, 6, "pictures judged")


VERDICT = {
    "filename": "0.png",
    "tag": "colors",
    "prompt": "a photo of a blue dog",
    "correct": False,
    "reason": "expected blue dog >= 1, found 1 red",
    "metadata": "",
    "details": json.dumps({"dog": [[10, 20, 30, 39, 0.9]], "cat": [[-4, 0, 70, 90, 0.4]]}),
    "colours": {"dog": ["red"]},
    "key": "",
}


def test_a_judged_picture_shows_the_objects_in_frames_those_asked_for_in_another_colour():
    shown = annotated(np.full((40, 60, 3), 200, dtype=np.uint8), VERDICT, {"dog"})  # type: ignore[arg-type]
    assert shown.shape == (metric.SHOWN_PX, metric.SHOWN_PX, 3)
    frame = np.argwhere((shown == (0xE6, 0x19, 0x4B)).all(-1))
    factor = metric.SHOWN_PX / 60
    assert frame.min(0) == pytest.approx([20 * factor, 10 * factor], abs=1)
    assert frame.max(0) == pytest.approx([39 * factor, 30 * factor], abs=2)
    assert (shown == (0x80, 0x80, 0x80)).all(-1).any()
    assert (shown[round(40 * factor) + 1 :] == 255).all(-1).mean() > 0.9  # below the picture there is nothing


def test_under_it_stands_the_prompt_and_why_it_is_wrong():
    assert in_words(VERDICT) == "a blue dog. wrong: expected blue dog >= 1, found 1 red"  # type: ignore[arg-type]
    assert in_words({**VERDICT, "correct": True, "reason": ""}) == "a blue dog. right"  # type: ignore[arg-type]


# Pictures made elsewhere.


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """Three prompts, two pictures each, of different sizes and formats, and what others leave beside them."""
    root = tmp_path / "elsewhere"
    for number, sample in enumerate(of_each_tag(recipe(), 1)[:3]):
        folder = root / f"{number:05d}"
        (folder / "samples").mkdir(parents=True)
        (folder / "metadata.jsonl").write_text(json.dumps(sample))
        pixels = np.random.default_rng(number).integers(0, 256, (24 + 8 * number, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "samples/0000.png")
        Image.fromarray(pixels[::-1]).save(folder / "samples/0001.jpg")
        Image.fromarray(pixels).save(folder / "samples/grid.png")
        Image.fromarray(pixels).save(folder / "grid.png")
    (root / "notes.txt").write_text("made by somebody")
    return root


def test_pictures_made_elsewhere_are_judged_by_the_prompts_beside_them(geneval, elsewhere, tmp_path, judged_pictures):
    assert is_folder_of_prompts(elsewhere)
    assert not is_folder_of_prompts(elsewhere / "00000")
    numbers, shown = geneval().evaluate(FolderSubject(elsewhere, tmp_path / "kept"))
    verdicts = lines(tmp_path / "kept/geneval/results.jsonl")
    names = [f"{number:05d}/samples/{name}" for number in range(3) for name in ("0000.png", "0001.jpg")]
    assert [verdict["filename"] for verdict in verdicts] == names
    assert [verdict["tag"] for verdict in verdicts] == [tag for tag in TAGS[:3] for _ in "12"]
    assert judged_pictures == [(24 + 8 * number, 32, 3) for number in range(3) for _ in "12"]
    assert numbers["geneval/pictures"] == 6
    assert shown.size[0] > metric.SHOWN_PX
    assert geneval().evaluate(FolderSubject(elsewhere, tmp_path / "kept"))[0] == numbers
    assert len(judged_pictures) == 6


def test_other_metrics_have_no_prompts_there(elsewhere):
    other = ShapesCompositional(["synthetic"], 1, 1, SAMPLING)  # type: ignore[arg-type]
    with pytest.raises(PicturesError, match=r"made elsewhere.* metrics=geneval"):
        other.evaluate(FolderSubject(elsewhere, elsewhere))


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda root: (root / "00001/metadata.jsonl").unlink(), r"00001 has no metadata\.jsonl"),
        (lambda root: (root / "00001/metadata.jsonl").write_text("{"), r"00001/metadata\.jsonl is damaged \(line 1"),
        (
            lambda root: (root / "00001/metadata.jsonl").write_text(f"{json.dumps(recipe()[0])}\n" * 2),
            "holds 2 prompts; it is one",
        ),
        (lambda root: empty(root / "00002/samples"), "00002/samples holds no picture that is called by a number"),
        (
            lambda root: (empty(root / "00002/samples"), (root / "00002/samples").rmdir()),
            "00002 has a metadata.jsonl and no folder samples",
        ),
        (
            lambda root: (root / "00000/samples/0000.png").write_bytes(b"no picture"),
            r"0000\.png: .* all of a set must be",
        ),
    ],
)
def test_what_is_missing_or_damaged_there_is_told_and_nothing_is_left_out(damage, says, geneval, elsewhere, tmp_path):
    damage(elsewhere)
    with pytest.raises((PicturesError, DamagedFileError), match=says):
        geneval().evaluate(FolderSubject(elsewhere, tmp_path / "kept"))


def test_a_strip_is_judged_and_one_that_is_no_picture_is_named(geneval, tmp_path):
    (tmp_path / "0/samples").mkdir(parents=True)
    (tmp_path / "0/metadata.jsonl").write_text(json.dumps(recipe()[0]))
    Image.new("RGB", (4096, 1)).save(tmp_path / "0/samples/0.png")
    assert geneval().evaluate(FolderSubject(tmp_path, tmp_path))[0]["geneval/pictures"] == 1
    Image.new("RGB", (4097, 1)).save(tmp_path / "0/samples/0.png")
    with pytest.raises(PicturesError, match=r"samples/0\.png: a side of more than 4096 px"):
        geneval().evaluate(FolderSubject(tmp_path, tmp_path))


def test_a_line_of_prompts_ends_where_everyone_has_it(tmp_path):
    (tmp_path / "prompts.jsonl").write_text(json.dumps({**recipe()[0], "prompt": "a\u2028dog"}, ensure_ascii=False))
    assert read_samples(tmp_path / "prompts.jsonl")[0]["prompt"] == "a\u2028dog"
