"""EDM (Karras et al. 2022): preconditioning, training loss and guidance, as functions over tensors and a network."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.model.dit import CaptionMemory
from microdit.model.masking import KeptPatches
from microdit.model.token_path import TokenPath

# F(x, noise label, captions) and F(x, noise label, captions, kept patches): the raw network.
Network = Callable[..., Float[Tensor, "n c h w"]]
# D(x, sigma): the clean latents the model believes are behind x.
Denoiser = Callable[[Float[Tensor, "n c h w"], float], Float[Tensor, "n c h w"]]


class Draws(NamedTuple):
    """The chance in one training step, drawn outside so that it can be a pure function of the sample's number."""

    noise_level: Float[Tensor, "n 1 1 1"]  # standard normal; becomes ln(sigma)
    noise: Float[Tensor, "n c h w"]  # standard normal
    mask: Float[Tensor, "n t"]  # uniform in [0, 1), one a patch


@dataclass(frozen=True)
class NoiseDistribution:
    """Training noise: ln(sigma) is normal with this mean and standard deviation."""

    mean: float
    std: float


def denoise(
    network: Network,
    x: Float[Tensor, "n c h w"],
    sigma: Float[Tensor, "n 1 1 1"],
    captions: Float[Tensor, "n *one l d"] | CaptionMemory,
    sigma_data: float,
    kept: KeptPatches | None = None,
) -> Float[Tensor, "n c h w"]:
    """D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma)/4, captions)   (EDM eq. 7 and table 1)."""
    total = sigma**2 + sigma_data**2
    c_skip, c_out, c_in = sigma_data**2 / total, sigma * sigma_data / total.sqrt(), 1 / total.sqrt()
    c_noise = sigma.flatten().log() / 4
    raw = network(c_in * x, c_noise, captions) if kept is None else network(c_in * x, c_noise, captions, kept)
    return c_skip * x + c_out * raw.to(x.dtype)


class LossTerms(NamedTuple):
    """`loss` is what is minimised: the mean of `per_sample`, the denoising part, and of what is learned beside it.

    `per_sample`, to be sorted by `sigma`, and `extra`, as it is weighted in the loss, carry no gradient.
    """

    loss: Float[Tensor, ""]
    per_sample: Float[Tensor, " n"]
    sigma: Float[Tensor, " n"]
    extra: Float[Tensor, " n"]


def training_loss(
    network: Network,
    latents: Float[Tensor, "n c h w"],
    captions: Float[Tensor, "n *one l d"],
    draws: Draws,
    *,
    token_path: TokenPath,
    noise: NoiseDistribution,
    sigma_data: float,
    mask_ratio: float,
    patch_size: int,
) -> LossTerms:
    """EDM's weighted denoising error on the patches where the token path has its loss, and what else it learns.

    w(sigma) (D(x0 + sigma eps; sigma) - x0)^2, averaged over the values of each patch, then over kept patches, then
    over the batch (EDM eq. 8; section 3.2 of the paper for the patches). `token_path` is the network's: it says which
    patches are kept, where the loss is, and what is added to it.
    """
    sigma = (noise.mean + noise.std * draws.noise_level).exp()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2  # lambda(sigma), EDM table 1
    rows, columns = (side // patch_size for side in latents.shape[-2:])
    kept = token_path.keep(draws.mask, mask_ratio, (rows, columns))
    noisy = latents + sigma * draws.noise
    denoised = denoise(network, noisy, sigma, captions, sigma_data, kept)
    per_sample = token_path.denoising_loss(patch_means(weight * (denoised - latents) ** 2, patch_size), kept)
    extra = token_path.extra_loss(denoised, noisy, kept, patch_size)
    return LossTerms((per_sample + extra).mean(), per_sample.detach(), sigma.flatten(), extra.detach())


def patch_means(picture: Float[Tensor, "n c h w"], patch_size: int) -> Float[Tensor, "n t"]:
    """The mean over channels and pixels of each patch, row by row."""
    return torch.nn.functional.avg_pool2d(picture.mean(dim=1, keepdim=True), patch_size).flatten(1)


def guided(network: Network, guidance_scale: float) -> Network:
    """The network under classifier-free guidance: F_u + w (F_c - F_u), both in one call of twice the batch.

    The unconditional caption is zeros in place of the caption embeddings. At w = 1 the network itself is returned.
    Captions that `DiT.read_captions` has read need no zeros: samples beyond their number are unconditional.
    """
    if guidance_scale == 1:
        return network

    def guided_network(x: Tensor, noise_label: Tensor, captions: Tensor | CaptionMemory) -> Tensor:
        both = torch.cat([captions, torch.zeros_like(captions)]) if isinstance(captions, Tensor) else captions
        conditional, unconditional = network(x.repeat(2, 1, 1, 1), noise_label.repeat(2), both).chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    return guided_network


def guided_denoiser(
    network: Network,
    captions: Float[Tensor, "n *one l d"] | CaptionMemory,
    sigma_data: float,
    guidance_scale: float,
    guidance_interval: Sequence[float] | None = None,
) -> Denoiser:
    """D(x, sigma) as samplers call it, for these captions: the network sees float32, the state keeps its precision.

    With an interval (low, high) only noise levels low < sigma <= high are guided, in the units of sigma, and the others
    cost half as much (Kynkäänniemi et al. 2024, eq. 6). Raises ValueError for an interval that is none.
    """
    interval = (0.0, math.inf) if guidance_interval is None else tuple(guidance_interval)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise ValueError(f"guidance_interval is two noise levels [low, high], 0 <= low < high; got {list(interval)}")
    low, high = interval

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        scale = guidance_scale if low < sigma <= high else 1.0
        sigmas = torch.full((len(x), 1, 1, 1), sigma, device=x.device)
        return denoise(guided(network, scale), x.float(), sigmas, captions, sigma_data).to(x.dtype)

    return denoiser
