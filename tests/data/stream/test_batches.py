from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdit.data.stream.batches import GlobalBatches


@given(st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(0, 10**9))
def test_the_global_batch_is_the_same_for_any_world(world: int, device: int, micro: int, step: int) -> None:
    size = world * device * micro
    ranks = [list(islice(GlobalBatches(size, rank, world, device, step), 2 * micro)) for rank in range(world)]
    first = [position for rank in ranks for batch in rank[:micro] for position in batch]
    second = [position for rank in ranks for batch in rank[micro:] for position in batch]
    assert first == list(range(step * size, (step + 1) * size))
    assert second == list(range((step + 1) * size, (step + 2) * size))


def test_resuming_continues_where_it_stopped() -> None:
    whole = list(islice(GlobalBatches(12, 1, 2, 3), 20))
    assert list(islice(GlobalBatches(12, 1, 2, 3, start_step=4), 12)) == whole[8:]


def test_a_batch_that_does_not_divide_names_one_that_does() -> None:
    with pytest.raises(ValueError, match="multiple of 24"):
        GlobalBatches(64, 0, 3, 8)
