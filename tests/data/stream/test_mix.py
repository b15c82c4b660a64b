import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdit.data.stream.order import PERIOD, EachOnce, Interleave, whole_shares

weights = st.lists(st.one_of(st.integers(1, 10**8), st.floats(0.001, 1000)), min_size=1, max_size=6)


@given(weights, st.integers(0, 10**9))
def test_shares_hold_in_every_stretch(weights: list[float], start: int) -> None:
    sources, _ = Interleave(weights).locate(np.arange(start, start + 3000))
    found = np.bincount(sources, minlength=len(weights)) / 3000
    assert np.abs(found - np.array(weights) / sum(weights)).max() < 0.001 + len(weights) / 3000


@given(weights, st.integers(0, 10**6))
def test_every_source_is_counted_without_gaps(weights: list[float], start: int) -> None:
    sources, numbers = Interleave(weights).locate(np.arange(start, start + 2000))
    for source in range(len(weights)):
        mine = numbers[sources == source]
        assert np.array_equal(mine, np.arange(len(mine)) + (mine[0] if len(mine) else 0))


def test_every_source_starts_at_zero() -> None:
    sources, numbers = Interleave([5, 3, 0.5]).locate(np.arange(200))
    assert [numbers[sources == source][0] for source in range(3)] == [0, 0, 0]


def test_decimal_weights_are_exact() -> None:
    assert whole_shares([0.7, 0.3]) == [7, 3]
    assert whole_shares([20_000, 10_000]) == [2, 1]


def test_a_tiny_weight_is_not_lost() -> None:
    shares = whole_shares([10**9 + 7, 1])
    assert shares[1] == 1
    assert sum(shares) <= PERIOD


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, float("nan")], [float("inf")]])
def test_weights_that_are_no_shares_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Interleave(weights)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(sum))
def test_a_fixed_set_holds_each_sample_once(sizes: list[int]) -> None:
    sources, rows = EachOnce(sizes).locate(np.arange(sum(sizes)))
    assert sorted(zip(sources, rows, strict=True)) == [(s, r) for s, size in enumerate(sizes) for r in range(size)]


def test_the_first_part_of_a_fixed_set_has_all_sources() -> None:
    sources, _ = EachOnce([100, 50]).locate(np.arange(30))
    assert np.bincount(sources).tolist() == [20, 10]
