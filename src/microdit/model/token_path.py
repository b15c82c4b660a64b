"""Token paths: the three answers a masking method gives, as one function each.

What runs on all patches before some are dropped, what the dropped patches become after the backbone, and on which
patches the loss is. A new method is a subclass in a file of its own, with parameters of its own if it needs any, named
by one file in `conf/masking/`. At mask ratio 0 and at inference `kept` is None and every path runs on all patches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.masking import KeptPatches

if TYPE_CHECKING:
    from microdit.model.dit import Conditioning, DiT


class TokenPath(nn.Module, ABC):
    """How tokens travel through the network when patches are masked.

    `uses_patch_mixer` says whether the network must have (True) or must not have (False) a patch-mixer; `drops_patches`
    whether the path can be used at mask ratios above 0.
    """

    uses_patch_mixer: bool
    drops_patches = True

    def __init__(self) -> None:  # nn.Module's own takes any argument, and so would let a misspelt setting pass
        super().__init__()

    @abstractmethod
    def forward(
        self, network: DiT, tokens: Float[Tensor, "n t d"], conditioning: Conditioning, kept: KeptPatches | None
    ) -> tuple[Float[Tensor, "n k d"], KeptPatches | None]:
        """Tokens of the patches that are predicted, and which patches those are (None: all of them)."""


class Unmasked(TokenPath):
    """All patches through the backbone: the quality that masking is measured against."""

    uses_patch_mixer = False
    drops_patches = False

    def forward(self, network, tokens, conditioning, kept):
        if kept is not None:
            raise ValueError("this path drops no patches, but some were to be dropped: use Naive() or Deferred()")
        return network.backbone(tokens, conditioning), None


class Naive(TokenPath):
    """Patches are dropped at the entrance, so nothing in the network ever sees them; loss on the kept ones."""

    uses_patch_mixer = False

    def forward(self, network, tokens, conditioning, kept):
        if kept is not None:
            tokens = kept.select(tokens)
        return network.backbone(tokens, conditioning), kept


class Deferred(TokenPath):
    """The paper's method: a light patch-mixer sees all patches, then most are dropped; loss on the kept ones.

    The dropped patches leave their content in the kept ones, through the mixer's attention (section 3.2 of the paper).
    """

    uses_patch_mixer = True

    def forward(self, network, tokens, conditioning, kept):
        tokens = network.mix_patches(tokens, conditioning)
        if kept is not None:
            tokens = kept.select(tokens)
        return network.backbone(network.leave_mixer(tokens), conditioning), kept
