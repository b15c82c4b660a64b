"""Which patches are kept, and that moving tokens there and back loses nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from microdit.masking.patches import KeptPatches, keep_blocks, keep_patches, kept_count


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"), [(256, 0.75, 64), (256, 0.0, 256), (256, 0.875, 32), (25, 0.75, 6), (3, 0.5, 1)]
)
def test_the_share_that_is_kept_is_rounded_down(patches, ratio, kept):
    assert kept_count(patches, ratio) == kept


@pytest.mark.parametrize("ratio", [1.0, 1.5, -0.1, float("nan")])
def test_a_ratio_outside_zero_to_one_is_refused(ratio):
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        kept_count(256, ratio)


def test_a_ratio_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="leaves none of 3 patches"):
        keep_patches(torch.rand(2, 3), 0.75)


def test_at_ratio_zero_there_is_no_mask():
    assert keep_patches(torch.rand(2, 16), 0.0) is None


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 4),
    t=st.integers(2, 80),
    ratio=st.floats(0.01, 0.99),
    levels=st.sampled_from([3, 1 << 24]),  # with few levels there are ties
    seed=st.integers(0, 1000),
)
def test_exactly_the_smallest_are_kept_in_ascending_order(n, t, ratio, levels, seed):
    k = int(t * (1 - ratio))
    uniform = torch.randint(levels, (n, t), generator=torch.Generator().manual_seed(seed)) / levels
    if k == 0:
        with pytest.raises(ValueError, match="leaves none"):
            keep_patches(uniform, ratio)
        return
    kept = keep_patches(uniform, ratio)
    if k == t:
        assert kept is None
        return
    assert kept.indices.shape == (n, k)
    assert torch.equal(uniform.gather(1, kept.indices), uniform.sort(dim=1).values[:, :k])
    expected = torch.ones(n, t)
    for row, indices in enumerate(kept.indices.tolist()):
        assert len(set(indices)) == k
        expected[row, indices] = 0
    assert torch.equal(kept.mask, expected)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 3),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    block_size=st.sampled_from([1, 2, 4]),
    ratio=st.sampled_from([0.25, 0.5, 0.75]),
    seed=st.integers(0, 1000),
)
def test_blocks_are_kept_and_dropped_whole_by_the_draw_of_their_first_patch(n, rows, columns, block_size, ratio, seed):
    grid = (rows * block_size, columns * block_size)
    uniform = torch.rand(n, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    blocks = int(rows * columns * (1 - ratio))
    if blocks == 0:
        with pytest.raises(ValueError, match="leaves none"):
            keep_blocks(uniform, ratio, grid, block_size)
        return
    kept = keep_blocks(uniform, ratio, grid, block_size)
    if blocks == rows * columns:
        assert kept is None
        return
    assert kept.indices.shape == (n, blocks * block_size**2)
    first = uniform.view(n, *grid)[:, ::block_size, ::block_size].flatten(1)
    chosen = keep_patches(first, ratio)
    whole = chosen.mask.view(n, rows, columns).repeat_interleave(block_size, 1).repeat_interleave(block_size, 2)
    assert torch.equal(kept.mask, whole.flatten(1))
    assert (kept.mask.gather(1, kept.indices) == 0).all()
    assert all(len(set(row)) == len(row) for row in kept.indices.tolist())
    # The blocks are processed in the order of their draws.
    block_of = (kept.indices // grid[1] // block_size) * columns + kept.indices % grid[1] // block_size
    assert torch.equal(block_of[:, :: block_size**2], chosen.indices)


def test_blocks_that_do_not_divide_the_picture_are_refused():
    with pytest.raises(ValueError, match="6 x 8 patches cannot be cut into blocks of 4 x 4"):
        keep_blocks(torch.rand(1, 48), 0.5, (6, 8), 4)


def test_a_ratio_that_leaves_no_block_says_what_it_counts():
    with pytest.raises(ValueError, match="leaves none of 4 blocks of patches"):
        keep_blocks(torch.rand(1, 64), 0.875, (8, 8), 4)


def test_placing_what_was_selected_restores_the_kept_and_fills_the_rest():
    tokens, filler = torch.randn(3, 10, 4), torch.full((1, 1, 4), 7.0)
    kept = keep_patches(torch.rand(3, 10), 0.6)
    selected = kept.select(tokens)
    for row in range(3):
        assert torch.equal(selected[row], tokens[row, kept.indices[row]])
    restored, dropped = kept.place(selected, filler), kept.mask.bool()
    assert torch.equal(restored[~dropped], tokens[~dropped])
    assert (restored[dropped] == 7).all()


def test_selecting_and_placing_pass_gradients_to_kept_tokens_only():
    tokens = torch.randn(2, 10, 4, requires_grad=True)
    kept = keep_patches(torch.rand(2, 10), 0.5)
    kept.place(kept.select(tokens), torch.zeros(1, 1, 4)).sum().backward()
    assert torch.equal(tokens.grad, (1 - kept.mask)[..., None].expand(-1, -1, 4))


def test_indices_given_by_hand_are_processed_in_their_order():
    kept = KeptPatches(torch.tensor([[2, 0]]), torch.tensor([[0.0, 1.0, 0.0]]))
    tokens = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert kept.select(tokens).flatten().tolist() == [3, 1]
    assert torch.equal(kept.place(kept.select(tokens), torch.zeros(1, 1, 1)).flatten(), torch.tensor([1.0, 0.0, 3.0]))
