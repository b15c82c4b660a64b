"""Deferred masking, the paper's method (section 3.2)."""

from microdit.masking.token_path import TokenPath


class Deferred(TokenPath):
    """A light patch-mixer sees all patches, then most are dropped; backbone and loss are on the kept ones.

    The dropped patches leave their content in the kept ones, through the mixer's attention.
    """

    uses_patch_mixer = True

    def forward(self, network, tokens, conditioning, kept, grid):
        tokens = network.mix_patches(tokens, conditioning)
        if kept is not None:
            tokens = kept.select(tokens)
        return network.backbone(network.leave_mixer(tokens), conditioning), kept
