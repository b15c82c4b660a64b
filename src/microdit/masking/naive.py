"""Naive masking: the cheapest, and the baseline that the paper beats."""

from microdit.masking.token_path import TokenPath


class Naive(TokenPath):
    """Patches are dropped at the entrance, so nothing in the network ever sees them; loss on the kept ones."""

    uses_patch_mixer = False

    def forward(self, network, tokens, conditioning, kept, grid):
        if kept is not None:
            tokens = kept.select(tokens)
        return network.backbone(tokens, conditioning), kept
