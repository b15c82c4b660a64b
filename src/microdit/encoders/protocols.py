"""What the rest of the project may ask of an autoencoder and of a text encoder; anything that answers is welcome."""

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn


class Autoencoder(nn.Module, ABC):
    """Images to latents and back, frozen.

    `channels`: of the latents. `downscale`: pixels per latent, along each side. `sigma_data`: standard deviation of the
    scaled latents (EDM's sigma_data). `weights`: hub name or folder, None where there is nothing to load.
    """

    channels: int
    downscale: int
    sigma_data: float
    weights: str | None

    def load(self) -> object:
        """Reads the weights now, where there are any, instead of on first use; raises what that would raise."""

    @abstractmethod
    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Scaled latents (float32, h2 = h / downscale) of images in [0, 1]; ValueError if a side does not divide."""

    @abstractmethod
    def decode(self, latents: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n 3 h w"]:
        """Images in [0, 1] (float32) of scaled latents."""


class TextEncoder(nn.Module, ABC):
    """Captions to one embedding per token, frozen.

    `channels`: width of an embedding. `length`: tokens per caption, padding included. `weights`: hub name or folder,
    None where there is nothing to load. `masks_padding`: embeddings of padding are zeros, and a network that is trained
    with this encoder does not attend to them.
    """

    channels: int
    length: int
    weights: str | None
    masks_padding: bool = False

    def load(self) -> object:
        """Reads the weights now, where there are any, instead of on first use; raises what that would raise."""

    @abstractmethod
    def tokenize(self, captions: list[str]) -> Int[Tensor, "n l"]:
        """Token ids (int64, CPU), l = `length`; a caption that is too long is cut and still ends in end-of-text, where
        the encoder has one."""

    @abstractmethod
    def encode_tokens(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """Embeddings (float32, d = `channels`) of what `tokenize` returned."""

    @abstractmethod
    def lengths(self, tokens: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        """Positions of each caption up to and including its end-of-text token; what follows is padding."""

    def encode(self, captions: list[str]) -> Float[Tensor, "n l d"]:
        """Embeddings (float32) of captions."""
        return self.encode_tokens(self.tokenize(captions))
