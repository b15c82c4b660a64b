"""The variational autoencoders of latent diffusion, through diffusers, and what all of its autoencoders have in
common."""

import logging
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from microdit.encoders.protocols import Autoencoder
from microdit.encoders.weights import DType, FrozenModule, weights_folder
from microdit.files import read_json, size_of_file
from microdit.kinds import Limits, Positive, Weights, Width, check_kind

# diffusers imports torchao where that is installed (the extra fp8), and both give advice about it that concerns nothing
# here.
for talkative in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(talkative).setLevel(logging.ERROR)

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

Config = TypedDict(
    "Config",
    {
        "block_out_channels": Annotated[list[Width], Limits(1, 32)],
        "layers_per_block": Annotated[int, Limits(1, 100)],
        "**": Any,
    },
    total=False,
)
FILES = [["config.json"], ["diffusion_pytorch_model.safetensors"]]


class DiffusersAutoencoder(Autoencoder):
    """A pretrained autoencoder of diffusers; latents = (z - `shift`) * `scale`.

    `weights`: a local folder, "owner/name" or "owner/name/folder" on the Hugging Face hub, or "embedded:name" for one
    that comes with this package; read on first use, or by `load()`. `channels`, `downscale`, `scale` and `shift` must
    agree with the weights' own configuration. `read` gives the model, on the CPU in float32.
    """

    weights: str

    def __init__(
        self,
        weights: Weights,
        channels: int,
        scale: float,
        shift: float,
        downscale: int,
        sigma_data: float,
        dtype: DType,
        read: Callable[[str, Mapping[str, float]], Any],
    ) -> None:
        super().__init__()
        self.weights, self.channels, self.downscale, self.sigma_data = weights, channels, downscale, sigma_data
        self.scale, self.shift = scale, shift
        declared = {"channels": channels, "downscale": downscale, "scale": scale, "shift": shift}
        self.frozen = FrozenModule(partial(read, weights, declared), dtype)

    def load(self) -> Any:
        """The diffusers model, read now if it was not yet; FileNotFoundError or ValueError as `read_autoencoder`."""
        return self.frozen.module()

    @abstractmethod
    def to_latents(self, model: Any, pixels: Float[Tensor, "n cp h w"]) -> Float[Tensor, "n c h2 w2"]:
        """z of pixels in [-1, 1]."""

    @torch.no_grad()
    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        height, width = images.shape[-2:]
        if height % self.downscale or width % self.downscale:
            raise ValueError(f"image sides must be multiples of {self.downscale}, got {height} x {width}")
        model: Any = self.load()
        with torch.autocast(self.frozen.device.type, enabled=False):
            pixels = pixel_unshuffle(2 * images - 1, patch_px(model)).to(self.frozen.device, self.frozen.dtype)
            latents = self.to_latents(model, pixels)
        return self._finite((latents.float() - self.shift) * self.scale, "latents")

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "n c h2 w2"]) -> Float[Tensor, "n 3 h w"]:
        if not latents.isfinite().all():
            raise FloatingPointError(
                f"{self.weights} was given latents that are no finite numbers: the network's weights are damaged or "
                "its training diverged. Draw with another checkpoint, or with a temperature near 1"
            )
        model: Any = self.load()
        z = latents.to(self.frozen.device, torch.float32) / self.scale + self.shift
        with torch.autocast(self.frozen.device.type, enabled=False):
            images = pixel_shuffle(model.decode(z.to(self.frozen.dtype)).sample, patch_px(model))
        return self._finite((images.float() + 1) / 2, "images").clamp(0, 1)

    def _finite(self, values: Tensor, what: str) -> Tensor:
        if not values.isfinite().all():
            raise FloatingPointError(
                f"{self.weights} gave non-finite {what}. If the input is finite, it overflowed in {self.frozen.dtype} "
                "(the SDXL autoencoder does in float16): set autoencoder.dtype=bfloat16 or float32"
            )
        return values


class KLAutoencoder(DiffusersAutoencoder):
    """A pretrained `diffusers.AutoencoderKL`. One whose network has 3 p^2 input channels sees pictures with every p x p
    pixels as channels, which is p times less work along each side.

    `sample`: draw z from the posterior, with torch's global generator, instead of taking its mode.
    """

    def __init__(
        self,
        weights: Weights,
        channels: Width,
        scale: Positive,
        shift: float = 0.0,
        downscale: Width = 8,
        sigma_data: Positive = 0.9,
        sample: bool = False,
        dtype: DType = "float32",
    ) -> None:
        super().__init__(weights, channels, scale, shift, downscale, sigma_data, dtype, read_autoencoder_kl)
        self.sample = sample

    def to_latents(self, model: Any, pixels: Float[Tensor, "n cp h w"]) -> Float[Tensor, "n c h2 w2"]:
        posterior = model.encode(pixels).latent_dist
        return posterior.sample() if self.sample else posterior.mode()


def patch_px(model: Any) -> int:
    """Pixels along a side that are channels of the network's input: 1, unless its in_channels say otherwise."""
    return math.isqrt(model.config.in_channels // 3)


def read_autoencoder_kl(weights: str, declared: Mapping[str, float]) -> "AutoencoderKL":
    """The model in folder or repository `weights`; raises as `read_autoencoder`."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    def described(model: Any) -> dict[str, float]:
        config = model.config
        return {
            "channels": config.latent_channels,
            "downscale": patch_px(model) * 2 ** (len(config.block_out_channels) - 1),
            "scale": config.scaling_factor,
            "shift": config.shift_factor or 0.0,
        }

    return read_autoencoder(AutoencoderKL, Config, described, weights, declared)


def read_autoencoder(
    kind: Any,
    config_kind: Any,
    described: Callable[[Any], dict[str, float]],
    weights: str,
    declared: Mapping[str, float],
) -> Any:
    """The model of diffusers' class `kind` in folder or repository `weights`, on the CPU in float32.

    FileNotFoundError if the weights cannot be had; ValueError if their configuration is not of `config_kind`, or what
    is `described` by it is not what was declared.
    """
    folder = weights_folder(weights, FILES, "autoencoder.weights")
    try:
        config = read_json(folder / FILES[0][0], "download it again")
        check_kind(config, config_kind, f"{folder / FILES[0][0]}:")
        if config.get("_class_name", kind.__name__) != kind.__name__:
            raise ValueError(f"it describes a {config['_class_name']}, and a {kind.__name__} is wanted")
        with torch.device("meta"):
            numbers = sum(each.numel() for each in kind.from_config(config).parameters())
        if numbers > (there := size_of_file(folder / FILES[1][0])):
            raise ValueError(f"it describes a network of {numbers:,} numbers, and its weights have {there:,} bytes")
        loaded: Any = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, SafetensorError) as error:
        raise ValueError(f"autoencoder.weights={weights}: diffusers cannot read {folder} ({error})") from error
    model, report = loaded
    # Where the file lacks a weight, diffusers keeps the random one and says so only in its log.
    if report["missing_keys"]:
        raise ValueError(
            f"autoencoder.weights={weights}: {FILES[1][0]} in {folder} lacks {len(report['missing_keys'])} weights, "
            f"{report['missing_keys'][0]} the first; download it again"
        )
    for name, value in described(model).items():
        if abs(value - declared[name]) > 1e-6:
            raise ValueError(
                f"autoencoder.weights={weights}: config.json in {folder} says {name} {value}, but the configuration "
                f"declares {declared[name]}. Choose the weights that belong to this autoencoder, or set "
                f"autoencoder.{name}={value} (latents already stored keep the value they were made with)"
            )
    return model
