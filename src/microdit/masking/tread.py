"""TREAD (Krause et al. 2025, arXiv 2501.04765): dropped patches go around the middle of the network."""

from jaxtyping import Float
from torch import Tensor

from microdit.masking.patches import KeptPatches
from microdit.masking.token_path import NetworkParts, TokenPath


class Tread(TokenPath):
    """The first blocks see all patches, the middle ones the kept, the last all again: dropped patches return as they
    were before the middle. The loss is on all patches, and there is no layer that inference would not need.

    `first_share` and `last_share` of the blocks, at least one each, run on all patches (2 and 4 of the paper's 28).
    """

    uses_patch_mixer = False

    def __init__(self, first_share: float, last_share: float, block_size: int = 1) -> None:
        super().__init__(block_size)
        for name, share in (("first", first_share), ("last", last_share)):
            if not 0 < share < 1:
                raise ValueError(f"masking.{name}_share is a share of the backbone's blocks, in (0, 1); got {share}")
        self.first_share, self.last_share = first_share, last_share

    def make_layers(self, network: NetworkParts) -> None:
        first, last = (max(1, round(share * network.depth)) for share in (self.first_share, self.last_share))
        if first + last >= network.depth:
            raise ValueError(
                f"masking.first_share={self.first_share} and last_share={self.last_share} leave none of "
                f"{network.depth} blocks between them: lower them, or take a deeper network"
            )
        self.leaves, self.returns = first, network.depth - last

    def forward(self, network, tokens, conditioning, kept, grid):
        tokens = network.backbone(tokens, conditioning, end=self.leaves)
        if kept is None:
            tokens = network.backbone(tokens, conditioning, self.leaves, self.returns)
        else:
            middle = network.backbone(kept.select(tokens), conditioning, self.leaves, self.returns)
            tokens = kept.place(middle, tokens)
        return network.backbone(tokens, conditioning, self.returns), None

    def denoising_loss(self, errors: Float[Tensor, "n t"], kept: KeptPatches | None) -> Float[Tensor, " n"]:
        """Over all patches: the last blocks predict the dropped ones too."""
        return errors.mean(dim=1)
