"""Networks that differ in one thing and are equal in another, found by counting: the same FLOPs, or parameters."""

import bisect
import math
from collections.abc import Callable, Sequence

MOST_HEADS = 10_000
COUNTS = 10  # networks that are counted at most
CLOSE_ENOUGH = 0.005
SAME_SHAPE = 1.6  # how much deeper for its width, or wider for its depth, a network may become


def size_of_equal_flops(
    flops: Callable[[int, int], int], wanted: float, depth: int, dim: int, head_dim: int
) -> tuple[int, int]:
    """The depth and width at which a network costs about `wanted` FLOPs, in the proportions of (depth, dim).

    `flops(depth, dim)` counts them on the real network. Widths are whole heads, so that small networks come less
    close than large ones. Raises ValueError when even the nearest one is off by half.
    """
    if depth * dim // head_dim > MOST_HEADS:
        raise ValueError(f"{depth} blocks of {dim // head_dim} heads are too many to look for a network of equal cost")
    sizes = [
        (d, heads * head_dim)
        for d in range(1, 3 * depth)
        for heads in range(1, 3 * dim // head_dim)
        if abs(math.log(d / depth * dim / (heads * head_dim))) <= math.log(SAME_SHAPE)
    ]
    counted: dict[tuple[int, int], int] = {}

    def error(size: tuple[int, int]) -> float:
        """How far a size is from what is wanted; estimated from the nearest one counted, since cost ~ depth dim^2."""
        if size in counted:
            return abs(math.log(counted[size] / wanted))
        d, w = min(counted, key=lambda other: abs(math.log(work(other) / work(size))))
        return abs(math.log(counted[d, w] * work(size) / work((d, w)) / wanted))

    counted[depth, dim] = flops(depth, dim)
    for _ in range(COUNTS):
        nearest = min(sizes, key=error)
        if nearest in counted and error(nearest) < CLOSE_ENOUGH:
            break
        candidate = min((size for size in sizes if size not in counted), key=error, default=nearest)
        counted[candidate] = flops(*candidate)
    best = min(counted, key=error)
    if error(best) > math.log(1.5):
        raise ValueError(
            f"no network with the proportions of depth {depth} and width {dim} costs about {wanted:.3g} FLOPs an "
            f"image; the nearest, depth {best[0]} and width {best[1]}, costs {counted[best]:.3g}"
        )
    return best


def work(size: tuple[int, int]) -> int:
    depth, dim = size
    return depth * dim**2


def ratio_of_equal_parameters(parameters: Callable[[float], int], wanted: int, ratios: Sequence[float]) -> float:
    """Which of `ratios`, which ascend, gives the network whose number of parameters is nearest to `wanted`.

    `parameters(ratio)` counts them on the real network.
    """
    above = bisect.bisect_left(ratios, wanted, key=parameters)
    return min(ratios[max(0, above - 1) : above + 1], key=lambda ratio: abs(parameters(ratio) - wanted))
