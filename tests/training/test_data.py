"""Waiting for data is measured, and reported while it lasts."""

import json
import logging
import time
from types import SimpleNamespace

import pytest

from microdit.data.shards.description import MismatchError
from microdit.data.shards.index import ShardIndex, index_folder
from microdit.data.shards.tars import write_tar
from microdit.files import DamagedFileError
from microdit.training.data import MOST_THREADS, WatchedLoader, keep_data, reading_threads


def test_the_wait_is_added_up_and_a_quick_loader_is_not_reported(caplog):
    def batches():
        for number in range(3):
            time.sleep(0.05)
            yield number

    watched = WatchedLoader(batches(), [[0], [1], [2]], lambda positions: ["a"], rank=0, stall_seconds=10)
    assert list(watched) == [0, 1, 2]
    assert 0.15 <= watched.seconds < 1
    assert not caplog.records


def test_a_stall_is_reported_with_rank_samples_and_shards_and_again_when_it_doubles(caplog):
    def batches():
        yield "first"
        time.sleep(1.0)
        yield "second"

    shards = {4: ["data/00.tar"], 6: [f"data/{n:02d}.tar" for n in range(6)]}
    watched = WatchedLoader(
        batches(), [[4, 5], [6, 7]], lambda positions: shards[positions[0]], rank=3, stall_seconds=0.2
    )
    with caplog.at_level(logging.WARNING):
        assert list(watched) == ["first", "second"]
    told = [record.getMessage() for record in caplog.records]
    assert 2 <= len(told) <= 3
    assert all("rank 3" in text and "samples 6 to 7" in text for text in told)
    assert "data/00.tar, data/01.tar, data/02.tar, data/03.tar and 2 more" in told[0]


@pytest.mark.parametrize(
    ("accelerator", "devices", "cores", "threads"),
    [("cpu", 2, 64, 1), ("gpu", 1, 4, 3), ("gpu", 8, 64, 7), ("gpu", 1, 64, MOST_THREADS), ("gpu", 8, 4, 1)],
)
def test_a_gpu_has_its_share_of_the_cores_for_reading(monkeypatch, accelerator, devices, cores, threads):
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    hardware = SimpleNamespace(accelerator=accelerator, devices=devices)
    assert reading_threads(SimpleNamespace(num_workers=None), hardware) == threads
    assert reading_threads(SimpleNamespace(num_workers=0), hardware) == 0


def stream_of(folder, *numbers):
    """What is asked of a stream whose one source has a sample for each number."""
    folder.mkdir(exist_ok=True)
    with (folder / "00000.tar").open("wb") as file:
        write_tar(file, [{"__key__": str(place), "json": str(number).encode()} for place, number in enumerate(numbers)])
    index_folder(folder)
    index = ShardIndex(folder / "index.npz")
    source = SimpleNamespace(name="mine", samples=index.rows, reader=SimpleNamespace(index=index))
    return SimpleNamespace(sources=[source])


@pytest.mark.parametrize(("now", "same"), [((1, 2, 3), True), ((1, 2), False), ((1, 2, 4), False), ((2, 1, 3), False)])
def test_a_resumed_run_notices_that_its_data_is_not_the_one_it_began_with(tmp_path, now, same):
    run = tmp_path / "run"
    keep_data(run, {"train": stream_of(tmp_path / "data", 1, 2, 3)}, resumed=False)
    replaced = stream_of(tmp_path / "data", *now)
    if same:
        keep_data(run, {"train": replaced}, resumed=True)
    else:
        with pytest.raises(MismatchError, match=rf"data of train/mine.*3 samples then, {len(now)} now.*init_from="):
            keep_data(run, {"train": replaced}, resumed=True)
        (run / "data.json").unlink()  # as the message says
        keep_data(run, {"train": replaced}, resumed=True)


def test_a_run_of_before_and_a_source_of_another_name_are_gone_on_with(tmp_path):
    one = stream_of(tmp_path / "one", 1)
    keep_data(tmp_path / "run", {"train": one}, resumed=True)
    other = stream_of(tmp_path / "other", 2)
    other.sources[0].name = "other"
    keep_data(tmp_path / "run", {"train": other}, resumed=True)
    keep_data(tmp_path / "run", {"train": one}, resumed=False)  # begun anew


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"train/mine": 3}', '{"train/mine": {"samples": -1, "fingerprint": ""}}']
)
def test_what_is_kept_of_the_data_and_damaged_is_named(tmp_path, content):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(DamagedFileError, match=r"data\.json.*remove it"):
        keep_data(tmp_path, {"train": stream_of(tmp_path / "data", 1)}, resumed=True)
    keep_data(tmp_path, {"train": stream_of(tmp_path / "data", 1)}, resumed=False)
    assert json.loads((tmp_path / "data.json").read_text())["train/mine"]["samples"] == 1
