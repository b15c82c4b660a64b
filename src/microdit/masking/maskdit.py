"""MaskDiT (Zheng et al. 2023, arXiv 2306.09305): an encoder on the kept patches, a light decoder on all of them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from microdit.masking.patches import KeptPatches, cut_patches
from microdit.masking.token_path import MOST_BLOCKS, NetworkParts, TokenPath

LEARNED_TOKEN_STD = 0.02
LARGEST_RATIO = 10


class MaskDiT(TokenPath):
    """The backbone sees the kept patches; a learned token stands for each dropped one in a decoder over all patches.

    Kept patches learn to denoise, dropped ones to reconstruct the noisy input, which is known about them: each patch
    normalised by its own mean and deviation, with `reconstruction_weight` (0.1 in the MaskDiT paper). The decoder has
    `decoder_depth_ratio` of the backbone's blocks and `decoder_width_ratio` of its width, in whole attention heads, so
    that it is as light at every size. It runs without a mask too, so it is part of the network that generates.
    """

    uses_patch_mixer = False
    positions: Float[Tensor, "1 t dd"]

    def __init__(
        self, decoder_depth_ratio: float, decoder_width_ratio: float, reconstruction_weight: float, block_size: int = 1
    ) -> None:
        super().__init__(block_size)
        for name, ratio in (("depth", decoder_depth_ratio), ("width", decoder_width_ratio)):
            if not 0 < ratio <= LARGEST_RATIO:
                told = f"a share of the backbone, above 0 and at most {LARGEST_RATIO}; got {ratio}"
                raise ValueError(f"masking.decoder_{name}_ratio is {told}")
        self.depth_ratio, self.width_ratio = decoder_depth_ratio, decoder_width_ratio
        self.reconstruction_weight = reconstruction_weight

    def make_layers(self, network: NetworkParts) -> None:
        width = network.head_dim * max(1, round(self.width_ratio * network.dim / network.head_dim))
        depth = max(1, round(self.depth_ratio * network.depth))
        if depth > MOST_BLOCKS:
            told = f"{self.depth_ratio} of {network.depth} blocks are {depth:,}, and {MOST_BLOCKS:,} are the most"
            raise ValueError(f"masking.decoder_depth_ratio={told}")
        self.register_buffer("positions", network.position_table(network.grid, width), persistent=False)
        self.map_in, self.map_captions = (network.change_width(network.dim, width) for _ in range(2))
        self.learned_token = nn.Parameter(LEARNED_TOKEN_STD * torch.randn(1, 1, width))
        self.decoder = nn.ModuleList(network.make_block(width) for _ in range(depth))
        self.map_out = network.change_width(width, network.dim)

    def forward(self, network, tokens, conditioning, kept, grid):
        if kept is not None:
            tokens = kept.select(tokens)
        tokens = self.map_in(network.backbone(tokens, conditioning))
        # Unused without a mask, but with a gradient of zero: DDP wants one of the same weights in every step.
        tokens = tokens + 0 * self.learned_token if kept is None else kept.place(tokens, self.learned_token)
        tokens = tokens + network.positions_of(grid, self.positions)
        captions = self.map_captions(conditioning.captions)
        for block in self.decoder:
            tokens = block(tokens, captions, conditioning.vector, conditioning.present)
        return self.map_out(tokens), None

    def extra_loss(
        self,
        denoised: Float[Tensor, "n c h w"],
        noisy: Float[Tensor, "n c h w"],
        kept: KeptPatches | None,
        patch_size: int,
    ) -> Float[Tensor, " n"]:
        """The mean squared error of D on dropped patches against the noisy input, normalised patch by patch."""
        if kept is None:
            return super().extra_loss(denoised, noisy, kept, patch_size)
        target = cut_patches(noisy, patch_size)
        variance, mean = torch.var_mean(target, dim=2, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
        errors = (cut_patches(denoised, patch_size) - target).square().mean(dim=2)
        return self.reconstruction_weight * (errors * kept.mask).sum(dim=1) / kept.mask.sum(dim=1)
