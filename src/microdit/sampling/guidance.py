"""Guidance: from the raw network to the denoiser that samplers call, led away from a weaker one."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.model.dit import CaptionMemory, DiT
from microdit.objectives.objective import Network, Objective, denoise

# D(x, sigma): the clean latents the model believes are behind x.
Denoiser = Callable[[Float[Tensor, "n c h w"], float], Float[Tensor, "n c h w"]]


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


def guided_by_path_drop(network: DiT, guidance_scale: float) -> Network:
    """The network under path-drop guidance (SPRINT, Park et al. 2025, section 3.3): the unconditional pass also leaves
    out what its token path can do without (`TokenPath.weak_pass`), so that it costs little. At w = 1 the network."""
    if guidance_scale == 1:
        return network

    def guided_network(x: Tensor, noise_label: Tensor, captions: Tensor | CaptionMemory) -> Tensor:
        none = torch.zeros_like(captions) if isinstance(captions, Tensor) else captions.without_captions()
        weak = network(x, noise_label, none, network.token_path.weak_pass(len(x), network.grid(x), x.device))
        return weak + guidance_scale * (network(x, noise_label, captions) - weak)

    return guided_network


GUIDANCE: dict[str, Callable[..., Network]] = {"captions": guided, "path_drop": guided_by_path_drop}
"""What one network can be led away from: itself without captions, and without a part of it as well."""
AUTOGUIDANCE = "autoguidance"


def guided_denoiser(
    network: Network,
    captions: Float[Tensor, "n *one l d"] | CaptionMemory,
    objective: Objective,
    guidance_scale: float,
    guidance_interval: Sequence[float] | None = None,
    guidance: str = "captions",
) -> Denoiser:
    """D(x, sigma) as samplers call it, for these captions: the network sees float32, the state keeps its precision.

    `guidance` is one of GUIDANCE. With an interval (low, high) only noise levels low < sigma <= high are guided, in the
    units of sigma, and the others cost half as much (Kynkäänniemi et al. 2024, eq. 6). Raises ValueError for an
    interval that is none.
    """
    is_guided = within(guidance_interval)

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        scale = guidance_scale if is_guided(sigma) else 1.0
        sigmas = torch.full((len(x), 1, 1, 1), sigma, device=x.device)
        return denoise(GUIDANCE[guidance](network, scale), x.float(), sigmas, captions, objective).to(x.dtype)

    return denoiser


def autoguided(
    strong: Denoiser, weak: Denoiser, guidance_scale: float, guidance_interval: Sequence[float] | None = None
) -> Denoiser:
    """D_0 + w (D_1 - D_0): away from a weaker network that reads the same captions, towards the better one and beyond
    (Karras et al. 2024, eq. 3). What the two learned may differ, since both are denoisers. At w = 1, and outside the
    interval, the better one alone, which costs half as much."""
    is_guided = within(guidance_interval)

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        denoised = strong(x, sigma)
        if guidance_scale == 1 or not is_guided(sigma):
            return denoised
        worse = weak(x, sigma)
        return worse + guidance_scale * (denoised - worse)

    return denoiser


def within(guidance_interval: Sequence[float] | None) -> Callable[[float], bool]:
    """Whether a noise level is guided. ValueError for an interval that is none."""
    interval = (0.0, math.inf) if guidance_interval is None else tuple(guidance_interval)
    if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
        raise ValueError(f"guidance_interval is two noise levels [low, high], 0 <= low < high; got {list(interval)}")
    low, high = interval
    return lambda sigma: low < sigma <= high
