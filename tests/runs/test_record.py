"""Adding to result.json: nothing is lost, whoever else adds."""

import json
import os
from multiprocessing import get_context

import pytest

from microdit.build import SettingsError
from microdit.files import DamagedFileError, read_json
from microdit.runs.record import add_to_record, read_record, usual_settings, write_record


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


@pytest.mark.parametrize("old", [[1.0], {"a": 1.0}])
def test_a_record_that_holds_more_than_plain_values_is_named_and_left_alone(tmp_path, old):
    content = json.dumps({"status": "finished", "loss": old})
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"result\.json: loss must be .* move it away"):
        add_to_record(tmp_path, {"loss": 1.0}, {})
    assert (tmp_path / "result.json").read_text() == content
    assert not (tmp_path / "evaluation").exists()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"metric": "loss", "settings": 3}, "settings must be settings by name, got 3"),
        ([], r"must be settings by name, got \[\]"),
        ({"metric": "loss", "settings": {"a": [[[]] * 2]}}, None),
    ],
)
def test_a_history_of_another_kind_is_named(tmp_path, line, told):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/history.jsonl").write_text(json.dumps(line) + "\n")
    if told is None:
        assert usual_settings(tmp_path, "loss") == line["settings"]
        return
    with pytest.raises(SettingsError, match=rf"history\.jsonl.*{told}.*move the damaged file away"):
        usual_settings(tmp_path, "loss")


def test_settings_of_a_metric_that_are_none_are_named(tmp_path):
    (tmp_path / "config.yaml").write_text(json.dumps({"metrics": {"loss": 3}}))
    with pytest.raises(SettingsError, match=r"config\.yaml.*metrics.loss must be settings by name"):
        usual_settings(tmp_path, "loss")


@pytest.mark.parametrize("nested", [900, 100_000])
def test_a_history_that_is_nested_too_deeply_is_named(tmp_path, nested):
    (tmp_path / "evaluation").mkdir()
    line = '{"metric": "loss", "settings": ' + '{"a":' * nested + "1" + "}" * nested + "}"
    (tmp_path / "evaluation/history.jsonl").write_text(line)
    with pytest.raises(SettingsError, match=r"history\.jsonl.*move the damaged file away"):
        usual_settings(tmp_path, "loss")


@pytest.mark.parametrize("use", [lambda run: add_to_record(run, {"a": 1.0}, {}), lambda run: usual_settings(run, "a")])
def test_a_pipe_in_the_place_of_a_history_is_no_reason_to_wait(tmp_path, use):
    (tmp_path / "evaluation").mkdir()
    os.mkfifo(tmp_path / "evaluation/history.jsonl")
    with pytest.raises(OSError, match=r"history\.jsonl is no ordinary file"):
        use(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 1e300])
def test_a_number_that_is_none_is_null_and_what_is_written_can_be_read(tmp_path, number):
    write_record(tmp_path, {"status": "finished", "validation/loss": number, "steps": 3})
    add_to_record(tmp_path, {"fid": number, "clip_score": 20.0}, {})
    assert read_record(tmp_path / "result.json") == {
        **{"status": "finished", "validation/loss": None, "steps": 3, "fid": None, "clip_score": 20.0}
    }


def test_work_beyond_what_an_integer_of_64_bits_holds_is_read_again(tmp_path):
    write_record(tmp_path, {"status": "finished", "total_flops": 10**21})
    assert read_record(tmp_path / "result.json")["total_flops"] == 10**21


def test_a_line_of_the_history_that_was_changed_is_told(tmp_path):
    add_to_record(tmp_path, {"fid": 1.0}, {"metric": "fid", "settings": {"count": 1000}})
    history = tmp_path / "evaluation/history.jsonl"
    history.write_text(history.read_text().replace("1000", "1001"))
    with pytest.raises(SettingsError, match=r"history\.jsonl cannot be read \(its checksum is another"):
        usual_settings(tmp_path, "fid")
