"""The deep-compression autoencoders of DC-AE (Chen et al. 2024, arXiv 2410.10733), through diffusers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

from jaxtyping import Float
from torch import Tensor

from microdit.encoders.autoencoder_kl import DiffusersAutoencoder, read_autoencoder
from microdit.encoders.weights import DType
from microdit.kinds import Limits, Positive, Weights, Width

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

Blocks = Annotated[list[Annotated[int, Limits(0, 100)]], Limits(1, 32)]
Widths = Annotated[list[Width], Limits(1, 32)]
Config = TypedDict(
    "Config",
    {
        "encoder_block_out_channels": Widths,
        "decoder_block_out_channels": Widths,
        "encoder_layers_per_block": Blocks,
        "decoder_layers_per_block": Blocks,
        "**": Any,
    },
    total=False,
)


class DCAutoencoder(DiffusersAutoencoder):
    """A pretrained `diffusers.AutoencoderDC`: 32 pixels or more a latent along each side, in many channels. It has no
    posterior: the same picture always gives the same latents, times `scale`."""

    def __init__(
        self,
        weights: Weights,
        channels: Width,
        scale: Positive,
        downscale: Width = 32,
        sigma_data: Positive = 1.0,
        dtype: DType = "float32",
    ) -> None:
        super().__init__(weights, channels, scale, 0.0, downscale, sigma_data, dtype, read_autoencoder_dc)

    def to_latents(self, model: Any, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        return model.encode(pixels).latent


def read_autoencoder_dc(weights: str, declared: Mapping[str, float]) -> "AutoencoderDC":
    """The model in folder or repository `weights`; raises as `read_autoencoder`."""
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

    def described(model: Any) -> dict[str, float]:
        config = model.config
        return {
            "channels": config.latent_channels,
            "downscale": 2 ** (len(config.encoder_block_out_channels) - 1),
            "scale": config.scaling_factor,
            "shift": 0.0,
        }

    return read_autoencoder(AutoencoderDC, Config, described, weights, declared)
