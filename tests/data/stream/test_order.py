import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdit.data.stream.order import SourceOrder, permutation

shard_sizes = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda sizes: sum(sizes) > 0)


def places(order: SourceOrder, numbers: np.ndarray) -> list[tuple[int, int]]:
    _, shards, rows = order.locate(numbers)
    return list(zip(shards.tolist(), rows.tolist(), strict=True))


@given(shard_sizes, st.integers(0, 2**63), st.integers(1, 50), st.integers(0, 5))
def test_each_sample_comes_once_an_epoch(sizes: list[int], seed: int, window_samples: int, epoch: int) -> None:
    order = SourceOrder(np.array(sizes), seed, window_samples)
    numbers = np.arange(epoch * sum(sizes), (epoch + 1) * sum(sizes))
    assert sorted(places(order, numbers)) == [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    assert set(order.locate(numbers)[0]) == {epoch}


@given(shard_sizes, st.integers(0, 1000), st.lists(st.integers(0, 500), min_size=1, max_size=40))
def test_a_place_depends_on_its_number_alone(sizes: list[int], seed: int, numbers: list[int]) -> None:
    asked_together = places(SourceOrder(np.array(sizes), seed, 10), np.array(numbers))
    fresh = SourceOrder(np.array(sizes), seed, 10)
    assert asked_together == [places(fresh, np.array([number]))[0] for number in numbers]


def test_epochs_and_seeds_differ() -> None:
    sizes = np.full(10, 50)
    first = places(SourceOrder(sizes, seed=0), np.arange(500))
    assert first != places(SourceOrder(sizes, seed=0), np.arange(500, 1000))
    assert first != places(SourceOrder(sizes, seed=1), np.arange(500))


def test_a_window_reads_only_its_shards_and_mixes_them() -> None:
    order = SourceOrder(np.full(100, 40), seed=3, window_samples=400)
    for start in (0, 400, 3600):
        _, shards, _ = order.locate(np.arange(start, start + 400))
        assert set(shards) == set(order.window_shards(start))
        assert len(set(shards)) == 10
        assert len(set(shards[:40])) > 5, "neighbours come from many shards"


def test_the_next_window_is_known_also_across_epochs() -> None:
    order = SourceOrder(np.full(20, 10), seed=3, window_samples=100)
    ahead = order.window_shards(150, windows_ahead=1)
    assert set(ahead[10:]) == set(order.locate(np.arange(200, 300))[1])


def test_shuffling_is_uniform() -> None:
    firsts = [permutation(seed, 6)[0] for seed in range(6000)]
    assert np.abs(np.bincount(firsts, minlength=6) - 1000).max() < 150


def test_the_order_never_changes_between_releases() -> None:
    order = SourceOrder(np.array([3, 4, 5]), seed=2024)
    expected = [(1, 0), (2, 2), (0, 0), (2, 4), (0, 2), (0, 1), (2, 3), (1, 1), (2, 1), (1, 2), (1, 3), (2, 0)]
    assert places(order, np.arange(12)) == expected


def test_37_million_samples_are_ordered_at_once() -> None:
    started = time.monotonic()
    order = SourceOrder(np.full(4_600, 8_043), seed=0)
    _, shards, _ = order.locate(np.arange(20_000_000, 20_000_064))
    assert time.monotonic() - started < 1
    assert len(set(shards)) > 4


def test_no_sample_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample to order"):
        SourceOrder(np.array([0, 0]), seed=0)
