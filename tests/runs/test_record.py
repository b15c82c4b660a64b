"""Adding to result.json: nothing is lost, whoever else adds."""

import json
from multiprocessing import get_context

import pytest

from microdit.files import DamagedFileError, read_json
from microdit.runs.record import add_to_record


def record_of(run) -> dict:
    return read_json(run / "result.json", "")


def test_what_was_there_stays(tmp_path):
    (tmp_path / "result.json").write_text('{"status": "finished", "steps": 3, "old": 1.5}')
    assert add_to_record(tmp_path, {"new": 2.5}, {"weights": "raw"}) == {}
    assert record_of(tmp_path) == {"status": "finished", "steps": 3, "old": 1.5, "new": 2.5}


def test_a_number_that_changes_is_told_and_its_old_value_kept(tmp_path):
    add_to_record(tmp_path, {"a": 1.0, "b": 1.0}, {"checkpoint": "first"})
    assert add_to_record(tmp_path, {"a": 2.0, "b": 1.0}, {"checkpoint": "second"}) == {"a": 1.0}
    assert record_of(tmp_path) == {"status": "unfinished", "a": 2.0, "b": 1.0}
    first, second = map(json.loads, (tmp_path / "evaluation/history.jsonl").read_text().splitlines())
    assert (first["checkpoint"], first["numbers"]) == ("first", {"a": 1.0, "b": 1.0})
    assert (second["checkpoint"], second["replaced"]) == ("second", {"a": 1.0})


def add(run, indices: range) -> None:
    for index in indices:
        add_to_record(run, {f"number_{index}": float(index)}, {})


def test_processes_that_add_at_once_lose_nothing(tmp_path):
    context = get_context("fork")
    workers = [context.Process(target=add, args=(tmp_path, range(first, 40, 4))) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert record_of(tmp_path) == {"status": "unfinished", **{f"number_{i}": float(i) for i in range(40)}}


@pytest.mark.parametrize("content", ["{", "[1, 2]"])
def test_a_record_that_is_none_is_left_alone(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"result\.json .* move it away"):
        add_to_record(tmp_path, {"a": 1.0}, {})
    assert (tmp_path / "result.json").read_text() == content
