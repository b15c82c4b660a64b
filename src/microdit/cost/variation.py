"""How a run differs from what its size and stage give: relative, so that a comparison holds at every scale."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch

from microdit.build import build
from microdit.cost.equal import ratio_of_equal_parameters, size_of_equal_flops
from microdit.cost.flops import forward_flops_per_image
from microdit.encoders.protocols import Autoencoder, TextEncoder
from microdit.kinds import Limits, Positive, Share, Width
from microdit.model.blocks import attention_width
from microdit.model.dit import DiT
from microdit.pipeline import build_network

Factor = Annotated[float, Limits(0.001, 1000)]
DEFERRED = {"_target_": "microdit.masking.deferred.Deferred"}


@dataclass(frozen=True)
class VariationSettings:
    """What differs from `model` and `resolution_stage`; the defaults change nothing.

    `patch_size` replaces the model's. `patch_mixer_depth`, `patch_mixer_width` and `learning_rate` are factors.
    `layerwise_scaling=False` makes all blocks alike, with the same number of parameters. `equal_flops_mask_ratio`
    makes the network smaller or larger, until an image costs what it costs the unchanged network with deferred masking
    at this ratio.
    """

    patch_size: Width | None = None
    patch_mixer_depth: Factor = 1.0
    patch_mixer_width: Factor = 1.0
    layerwise_scaling: bool = True
    equal_flops_mask_ratio: Share | None = None
    learning_rate: Positive = 1.0


@dataclass(frozen=True)
class Inputs:
    """What the network works on: with its size, it decides its FLOPs."""

    latent_side: int
    latent_channels: int
    caption_length: int
    caption_channels: int


def inputs_of(autoencoder: Mapping[str, Any], text_encoder: Mapping[str, Any], resolution_px: int) -> Inputs:
    """The inputs that these encoders make of pictures of this size."""
    pictures, captions = build(autoencoder, Autoencoder), build(text_encoder, TextEncoder)
    return Inputs(resolution_px // pictures.downscale, pictures.channels, captions.length, captions.channels)


def varied_model(
    model: Mapping[str, Any],
    moe: Mapping[str, Any],
    masking: Mapping[str, Any],
    mask_ratio: float,
    inputs: Callable[[], Inputs],
    variation: VariationSettings,
) -> dict[str, Any]:
    """The settings of the network that is meant: those of `model`, varied. `inputs` is asked only where FLOPs matter.

    Networks are compared on the meta device, by torch's own counts. Raises SettingsError or ValueError where the
    variation makes no network, or none of equal cost is found.
    """
    varied = {**model, "patch_mixer_depth": max(1, round(model["patch_mixer_depth"] * variation.patch_mixer_depth))}
    if variation.patch_size is not None:
        varied["patch_size"] = variation.patch_size
    if variation.patch_mixer_width != 1:
        heads = round(model["patch_mixer_dim"] * variation.patch_mixer_width / model["head_dim"])
        varied["patch_mixer_dim"] = model["head_dim"] * max(1, heads)
    if not variation.layerwise_scaling:
        varied |= blocks_alike(varied, moe, masking)
    if variation.equal_flops_mask_ratio is not None:
        seen = inputs()
        wanted = forward_flops(model, moe, DEFERRED, variation.equal_flops_mask_ratio, seen)

        def flops(depth: int, dim: int) -> int:
            return forward_flops({**varied, "depth": depth, "dim": dim}, moe, masking, mask_ratio, seen)

        depth, dim = size_of_equal_flops(flops, wanted, model["depth"], model["dim"], model["head_dim"])
        varied |= {"depth": depth, "dim": dim}
    return varied


def blocks_alike(model: Mapping[str, Any], moe: Mapping[str, Any], masking: Mapping[str, Any]) -> dict[str, Any]:
    """The ratios that all blocks share when they are not scaled layer by layer, and the network stays as large.

    Attention gets the whole heads nearest to its mean width; the feed-forward layers get what is left.
    """
    head_dim, dim = model["head_dim"], model["dim"]
    first, last = model["attention_ratios"]
    scaled = np.linspace(first, last, model["depth"])
    mean_width = np.mean([attention_width(dim, ratio, head_dim) for ratio in scaled])
    attention = min(1.0, 2 * head_dim * max(1, round(mean_width / (2 * head_dim))) / dim)

    def parameters(attention_ratios: list[float], ffn_ratios: list[float]) -> int:
        settings = {**model, "attention_ratios": attention_ratios, "ffn_ratios": ffn_ratios}
        # Neither the size of the latents nor the width of captions differs between the networks that are compared.
        return sum(p.numel() for p in network_on_meta(settings, moe, masking, Inputs(32, 4, 77, 1024)).parameters())

    # SwiGLU rounds two thirds of the width up to a multiple, experts the whole: halves of it leave out no network.
    step = model["multiple_of"] / (2 * dim)
    ratios = [step * k for k in range(1, 1 + int(2 * max(model["ffn_ratios"]) / step))]
    wanted = parameters(model["attention_ratios"], model["ffn_ratios"])
    ffn = ratio_of_equal_parameters(lambda ratio: parameters([attention] * 2, [ratio] * 2), wanted, ratios)
    return {"attention_ratios": [attention] * 2, "ffn_ratios": [ffn] * 2}


def forward_flops(
    model: Mapping[str, Any], moe: Mapping[str, Any], masking: Mapping[str, Any], mask_ratio: float, inputs: Inputs
) -> int:
    network = network_on_meta(model, moe, masking, inputs)
    return forward_flops_per_image(network, mask_ratio, inputs.caption_length)


def network_on_meta(
    model: Mapping[str, Any], moe: Mapping[str, Any], masking: Mapping[str, Any], inputs: Inputs
) -> DiT:
    settings = {"pos_interp_scale": 1.0, **model, **moe, "input_size": inputs.latent_side}
    with torch.device("meta"):
        return build_network(settings, dict(masking), inputs.latent_channels, inputs.caption_channels)
