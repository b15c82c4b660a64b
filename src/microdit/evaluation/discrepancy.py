"""Maximum mean discrepancy between two sets of features, which assumes no shape of their distribution."""

import torch
from jaxtyping import Float
from torch import Tensor

SIGMA, SCALE = 10.0, 1000.0  # of CMMD (Jayasumana et al. 2024)
AT_ONCE = 2048


def discrepancy(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """1000 times the squared MMD of features, each brought to length 1, by a Gaussian kernel of width 10."""
    first, second = (torch.nn.functional.normalize(each.double(), dim=-1) for each in (first, second))
    within = mean_kernel(first, first) + mean_kernel(second, second)
    return SCALE * (within - 2 * mean_kernel(first, second))


def mean_kernel(first: Float[Tensor, "n d"], second: Float[Tensor, "m d"]) -> float:
    """The mean of exp(-|a - b|^2 / 2 sigma^2) over all pairs, some rows at a time."""
    total = 0.0
    for rows in first.split(AT_ONCE):
        squares = rows.square().sum(1)[:, None] + second.square().sum(1)[None] - 2 * rows @ second.T
        total += float(torch.exp(-squares / (2 * SIGMA**2)).sum())
    return total / (len(first) * len(second))
