"""REPA (Yu et al. 2024, arXiv 2410.06940): a projection of early tokens tells a frozen network's features."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from microdit.kinds import Ratio
from microdit.masking.patches import KeptPatches
from microdit.representation.alignment import Alignment, PartOfBlocks, PartOfRun
from microdit.representation.features import PatchFeatures


class Repa(Alignment):
    """- weight mean_p cos(y_p, h(z_p)) (section 3.2 of the paper): y_p are the features of patch p, z_p its token, and
    h three linear layers with SiLU between them, `hidden_ratio` times as wide as the network."""

    def __init__(
        self, features: PatchFeatures, weight: float, block_share: PartOfBlocks, until: PartOfRun, hidden_ratio: Ratio
    ) -> None:
        super().__init__(features, weight, block_share, until)
        self.hidden_ratio = hidden_ratio

    def make_layers(self, dim: int) -> None:
        hidden = max(1, round(self.hidden_ratio * dim))
        self.projection = nn.Sequential(
            nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, self.channels)
        )

    def project(
        self, tokens: Float[Tensor, "n k d"], kept: KeptPatches | None, grid: tuple[int, int]
    ) -> Float[Tensor, "n k c"]:
        return self.projection(tokens)
