"""Frechet distance between two sets of pictures, by whichever network makes the features."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance


class Features(nn.Module, ABC):
    """A feature network that settings may choose. `name` tells distances by different ones apart; `num_features` is
    what torchmetrics looks for."""

    name: str
    num_features: int

    @abstractmethod
    def forward(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features of pictures in 0..255."""


def frechet_distances(
    metric: FrechetInceptionDistance,
    samples: Mapping[str, Iterable[Float[Tensor, "n 3 h w"]]],
    references: Iterable[Float[Tensor, "n 3 h w"]],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The distance of each of `samples` to the same `references`, pictures in [0, 1] in batches.

    |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of the features' means and covariances (Heusel et al. 2017, eq. 6).
    `metric` holds the feature network, takes bytes (normalize=False) and keeps its references when it is reset.
    """
    metric = metric.to(device)
    for batch in references:
        metric.update(as_bytes(batch).to(device), real=True)
    distances = {}
    for name, batches in samples.items():
        for batch in batches:
            metric.update(as_bytes(batch).to(device), real=False)
        distances[name] = float(metric.compute())
        metric.reset()
    return distances


def as_bytes(images: Float[Tensor, "n 3 h w"]) -> Tensor:
    """Pictures in [0, 1] as 0..255, rounded: torchmetrics would cut off, and darken one value in a few."""
    return (images.clamp(0, 1) * 255).round().byte()
