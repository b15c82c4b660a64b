"""Frechet distance between two sets of pictures, by whichever network makes the features."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor, nn


class Features(nn.Module, ABC):
    """A feature network that settings may choose. `name` tells distances by different ones apart; it makes
    `num_features` numbers of a picture."""

    name: str
    num_features: int

    @abstractmethod
    def forward(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features of pictures in 0..255."""


@dataclass(frozen=True)
class Moments:
    """Of the features of a set of pictures: their sum, the sum of their outer products, and how many there are."""

    total: Float64[Tensor, " d"]
    outer: Float64[Tensor, "d d"]
    count: int

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"a Frechet distance is of two pictures at least on either side, got {self.count}")

    @property
    def mean(self) -> Float64[Tensor, " d"]:
        return self.total / self.count

    @property
    def covariance(self) -> Float64[Tensor, "d d"]:
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


def moments_of(features: Iterable[Float[Tensor, "n d"]]) -> Moments:
    """The moments of features in batches, added up in their order. ValueError for fewer than two pictures."""
    total = outer = torch.zeros((), dtype=torch.float64)
    count = 0
    for batch in features:
        batch = batch.double().cpu()
        total, outer, count = total + batch.sum(0), outer + batch.T @ batch, count + len(batch)
    return Moments(total, outer, count)


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)) of means and covariances (Heusel et al. 2017, eq. 6).

    (C1 C2)^(1/2) has the trace of (S C2 S)^(1/2) with S = C1^(1/2), whose matrices are symmetric. ValueError for
    features that are no finite numbers, or too large for it.
    """
    if not (first.covariance + second.covariance).isfinite().all():
        raise ValueError("the features of pictures are no finite numbers, or too large: refresh=true makes them anew")
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    of_both = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp_min(0).sqrt().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    return float((first.mean - second.mean).square().sum() + traces - 2 * of_both)


@torch.no_grad()
def frechet_distances(
    network: nn.Module,
    samples: Mapping[str, Iterable[Float[Tensor, "n 3 h w"]]],
    references: Iterable[Float[Tensor, "n 3 h w"]],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """The distance of each of `samples` to the same `references`, pictures in [0, 1] in batches, by the features of
    `network`, which takes bytes."""
    network = network.to(device).eval()

    def moments(batches: Iterable[Float[Tensor, "n 3 h w"]]) -> Moments:
        return moments_of(network(as_bytes(batch).to(device)) for batch in batches)

    true = moments(references)
    return {name: frechet_distance(true, moments(batches)) for name, batches in samples.items()}


def as_bytes(images: Float[Tensor, "n 3 h w"]) -> Tensor:
    """Pictures in [0, 1] as 0..255, rounded: torchmetrics would cut off, and darken one value in a few."""
    return (images.clamp(0, 1) * 255).round().byte()
