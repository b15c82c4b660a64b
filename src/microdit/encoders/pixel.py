"""The identity autoencoder: the diffusion model sees pixels."""

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.encoders.protocols import Autoencoder
from microdit.kinds import Positive


class PixelAutoencoder(Autoencoder):
    """Images are their own latents, moved from [0, 1] to [-1, 1]. Nothing to load."""

    def __init__(self, sigma_data: Positive = 0.5) -> None:
        super().__init__()
        self.channels, self.downscale, self.weights = 3, 1, None
        self.sigma_data = sigma_data

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        return 2 * images.float() - 1

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        return ((latents.float() + 1) / 2).clamp(0, 1)
