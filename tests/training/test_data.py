"""Waiting for data is measured, and reported while it lasts."""

import logging
import time
from types import SimpleNamespace

import pytest

from microdit.training.data import MOST_THREADS, WatchedLoader, reading_threads


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
