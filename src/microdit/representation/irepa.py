"""iREPA (Singh et al. 2025, arXiv 2512.10794): alignment that keeps to how features differ from place to place."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microdit.masking.patches import KeptPatches
from microdit.representation.alignment import Alignment, PartOfBlocks, PartOfRun
from microdit.representation.features import PatchFeatures

EPSILON = 1e-6


class IRepa(Alignment):
    """REPA with a convolution of 3 x 3 patches in place of three linear layers, and features without their mean over
    the picture, divided by their deviation over it: y = (x - gamma mean(x)) / (std(x) + 1e-6), channel by channel.

    `mean_share` is gamma. Where patches were dropped before the block, the convolution sees zeros for them.
    """

    def __init__(
        self,
        features: PatchFeatures,
        weight: float,
        block_share: PartOfBlocks,
        until: PartOfRun,
        mean_share: PartOfRun,
    ) -> None:
        super().__init__(features, weight, block_share, until)
        self.mean_share = mean_share

    def make_layers(self, dim: int) -> None:
        self.projection = nn.Conv2d(dim, self.channels, kernel_size=3, padding=1)

    def project(
        self, tokens: Float[Tensor, "n k d"], kept: KeptPatches | None, grid: tuple[int, int]
    ) -> Float[Tensor, "n k c"]:
        everywhere = tokens if kept is None else kept.place(tokens, tokens.new_zeros(1, 1, tokens.shape[2]))
        found = self.projection(everywhere.transpose(1, 2).unflatten(2, grid)).flatten(2).transpose(1, 2)
        return found if kept is None else kept.select(found)

    def target(self, features: Float[Tensor, "n c rows columns"]) -> Float[Tensor, "n c rows columns"]:
        deviation, mean = torch.std_mean(features, dim=(2, 3), keepdim=True)
        return (features - self.mean_share * mean) / (deviation + EPSILON)
