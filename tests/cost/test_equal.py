"""Networks of equal cost are found by counting few of them, and are as near as whole heads allow."""

import math

import pytest

from microdit.cost.equal import COUNTS, ratio_of_equal_parameters, size_of_equal_flops


class Counted:
    """FLOPs like a transformer's: a part for the width alone, and blocks with a linear and a quadratic part."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, depth: int, dim: int) -> int:
        self.sizes.append((depth, dim))
        return 3000 * dim + depth * (12 * dim**2 + 600 * dim)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.4, 1.0, 1.7])
def test_the_size_found_costs_what_is_wanted_in_the_same_proportions(share):
    flops = Counted()
    wanted = share * Counted()(28, 1024)
    depth, dim = size_of_equal_flops(flops, wanted, depth=28, dim=1024, head_dim=64)
    assert flops(depth, dim) == pytest.approx(wanted, rel=0.03)
    assert dim % 64 == 0
    assert abs(math.log(depth / 28 * 1024 / dim)) <= math.log(1.6)
    assert len(flops.sizes) <= COUNTS + 2


def test_a_network_that_costs_what_is_wanted_is_left_as_it_is():
    assert size_of_equal_flops(Counted(), Counted()(16, 512), 16, 512, 32) == (16, 512)


def test_a_cost_that_no_network_has_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="costs about 1 FLOPs an image; the nearest, depth 1 and width 32"):
        size_of_equal_flops(Counted(), 1, depth=4, dim=128, head_dim=32)


@pytest.mark.parametrize(("wanted", "nearest"), [(0, 0.5), (44, 1.0), (56, 1.5), (1000, 2.0)])
def test_the_ratio_found_has_the_nearest_number_of_parameters(wanted, nearest):
    assert ratio_of_equal_parameters(lambda ratio: int(40 * ratio), wanted, [0.5, 1.0, 1.5, 2.0]) == nearest
