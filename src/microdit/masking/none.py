"""No masking: the quality that masking is measured against."""

from microdit.masking.token_path import TokenPath


class Unmasked(TokenPath):
    """All patches through the backbone, at full cost."""

    uses_patch_mixer = False
    drops_patches = False

    def __init__(self) -> None:  # takes no block size, because it drops nothing
        super().__init__()

    def forward(self, network, tokens, conditioning, kept, grid):
        if kept is not None:
            raise ValueError("this path drops no patches, but some were to be dropped: use Naive() or Deferred()")
        return network.backbone(tokens, conditioning), None
