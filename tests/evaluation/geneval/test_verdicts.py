"""Verdicts are kept as soon as they are known: nothing is judged twice, whoever is killed on the way."""

import json
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pandas
import pytest
from judging import bright_dogs, judge_and_be_killed, pictures_of_dogs
from warm_processes import warm_processes

from microdit.evaluation.geneval.verdicts import boxes_of, judged, scores
from microdit.evaluation.subject import silent
from microdit.files import DamagedFileError, sealed, unsealed
from microdit.kinds import SettingsError


@pytest.fixture
def judge_again(tmp_path):
    """judge_again(pictures, name): the verdicts, and how bright the pictures were that the judge was asked for."""

    def ask(pictures=None, name="bright dogs"):
        pictures = pictures_of_dogs(6) if pictures is None else pictures
        asked: list[int] = []
        return judged(tmp_path, pictures, len(pictures), bright_dogs(asked.append, name), silent), asked

    return ask


def test_each_picture_has_one_line_in_the_order_of_the_pictures(judge_again, tmp_path):
    verdicts, _ = judge_again()
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert lines == verdicts
    assert [line["filename"] for line in lines] == [f"{number}.png" for number in range(6)]
    assert [line["correct"] for line in lines] == [False, False, False, True, True, True]
    assert lines[0]["reason"] == "expected dog >= 1, found 0"
    assert json.loads(lines[0]["metadata"]) == pictures_of_dogs(6)[0][1]
    assert json.loads(lines[-1]["details"]) == {"dog": [[1, 2, 6, 7, 0.95]]}


def test_the_lines_are_read_by_genevals_own_way_of_counting(judge_again, tmp_path):
    verdicts, _ = judge_again([*pictures_of_dogs(6), *pictures_of_dogs(4, "colors"), *pictures_of_dogs(3, "colors")])
    table = pandas.read_json(tmp_path / "results.jsonl", orient="records", lines=True)
    by_tag = table.groupby("tag", sort=False)["correct"].mean()
    assert scores(verdicts) == {
        "single_object": pytest.approx(by_tag["single_object"]),
        "colors": pytest.approx(by_tag["colors"]),
        "overall": pytest.approx(by_tag.mean()),  # of the tags, however many pictures each has
    }


def test_what_is_kept_is_not_judged_again(judge_again):
    verdicts, asked = judge_again()
    assert asked == [0, 51, 102, 153, 204, 255]
    assert judge_again() == (verdicts, [])
    assert judge_again(pictures_of_dogs(6)[:2]) == (verdicts[:2], [])  # a first look
    assert judge_again() == (verdicts, [])


def test_another_judge_another_prompt_and_another_picture_are_judged_anew(judge_again):
    judge_again()
    assert len(judge_again(name="another")[1]) == 6
    other = [
        (name, {**sample, "include": [{"class": "cat", "count": 1}]}, p) for name, sample, p in pictures_of_dogs(6)
    ]
    assert len(judge_again(other)[1]) == 6
    one_changed = pictures_of_dogs(6)
    one_changed[2][2][0, 0] = 255
    assert judge_again(one_changed)[1] == [int(one_changed[2][2].mean())]
    assert judge_again()[1] == []  # the first ones are still there


@pytest.mark.parametrize(("when", "twice"), [("kept", {}), ("asked", {119: 2})])
def test_a_judge_that_is_killed_goes_on_where_it_was(when, twice, tmp_path):
    requests = tmp_path / "requests"
    for at in (8, None):
        process = warm_processes().Process(
            target=judge_and_be_killed, args=(tmp_path / "killed", requests, 16, at, when)
        )
        process.start()
        process.join(60)
        assert process.exitcode == (0 if at is None else -signal.SIGKILL)
    # Only for the picture whose answer nobody heard it was asked again.
    assert Counter(map(int, requests.read_text().split())) == Counter(range(0, 256, 17)) | Counter(twice)
    judge_and_be_killed(tmp_path / "whole", requests, 16, None, when)
    killed, whole = ((tmp_path / name / "results.jsonl").read_text() for name in ("killed", "whole"))
    assert killed == whole


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_that_was_cut_off_is_judged_again_and_no_other(cut, judge_again, tmp_path):
    verdicts, _ = judge_again()
    journal = tmp_path / "judged.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-cut])
    assert judge_again() == (verdicts, [255])
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{", b"[]", b"\xff", b'{"key": 1}', b'{"correct": true}'])
def test_any_other_line_that_is_none_is_told(line, judge_again, tmp_path):
    judge_again()
    journal = tmp_path / "judged.jsonl"
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([first, line + b"\n", *rest]))
    with pytest.raises(DamagedFileError, match=r"judged\.jsonl is damaged \(line 2: .*; remove it and evaluate again"):
        judge_again()


def forged(journal: Path, **changes: object) -> None:
    """A journal whose last line says something else, with the checksum of that."""
    *lines, last = journal.read_text().splitlines()
    changed = json.dumps(sealed({**unsealed(json.loads(last)), **changes}))
    journal.write_text("".join(f"{line}\n" for line in [*lines, changed]))


@pytest.mark.parametrize(
    "changes",
    [
        {"details": "[" * 100_000},
        {"details": "{"},
        {"details": json.dumps({"dog": [[1, 2, 6, 7, 0.9]] * 17})},
        {"details": json.dumps({"d\n\n": [[1, 2, 6, 7, 0.9]]})},
        {"colours": {"dog": ["x" * 100]}},
        {"reason": "x " * 10_000},
    ],
)
def test_a_verdict_from_elsewhere_that_says_more_than_any_is_refused(changes, judge_again, tmp_path):
    judge_again()
    forged(tmp_path / "judged.jsonl", **changes)
    with pytest.raises(DamagedFileError, match=r"judged\.jsonl is damaged .*; remove it and evaluate again"):
        judge_again()


def test_what_a_verdict_is_of_is_what_is_asked_whatever_its_line_says(judge_again, tmp_path):
    verdicts, _ = judge_again()
    forged(tmp_path / "judged.jsonl", tag="of nothing", prompt="x" * 100_000, metadata="")
    assert judge_again() == (verdicts, [])


def test_a_verdict_that_is_not_as_it_was_written_is_told(judge_again, tmp_path):
    judge_again()
    journal = tmp_path / "judged.jsonl"
    journal.write_text(journal.read_text().replace('"correct": true', '"correct": false', 1))
    with pytest.raises(DamagedFileError, match=r"judged\.jsonl is damaged \(line 4: its checksum is another"):
        judge_again()


def test_boxes_of_a_verdict_from_elsewhere_are_numbers_or_refused(judge_again):
    verdicts, _ = judge_again()
    assert boxes_of(verdicts[-1]) == {"dog": [[1, 2, 6, 7, 0.95]]}
    for details in ('{"dog": [[1, 2, 6, 7]]}', '{"dog": [[1, 2, 6, 7, 1e30]]}', '{"dog": 3}', "[]"):
        with pytest.raises(SettingsError, match="details"):
            boxes_of({**verdicts[-1], "details": details})


def test_pictures_of_any_layout_in_memory_are_the_same(judge_again):
    verdicts, _ = judge_again()
    turned = [(name, sample, np.asfortranarray(picture)) for name, sample, picture in pictures_of_dogs(6)]
    assert judge_again(turned) == (verdicts, [])
