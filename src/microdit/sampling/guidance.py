"""Classifier-free guidance: from the raw network to the denoiser that samplers call."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.model.dit import CaptionMemory
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


def guided_denoiser(
    network: Network,
    captions: Float[Tensor, "n *one l d"] | CaptionMemory,
    objective: Objective,
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
        return denoise(guided(network, scale), x.float(), sigmas, captions, objective).to(x.dtype)

    return denoiser
