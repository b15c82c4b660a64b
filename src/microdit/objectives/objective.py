"""What the network is asked for: a preconditioning in sigma, the weight of its error, and how sigma is drawn.

Noisy is always x = x0 + sigma eps, and a denoiser is always D(x; sigma), so that samplers, guidance, metrics and plots
over noise levels are the same for every objective. An objective is five functions of sigma:

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise),   loss = weight |D - x0|^2     (EDM eq. 7 and 8)

A new one is a subclass in a file of its own, named by one file in `conf/objective/`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.kinds import Positive
from microdit.masking.patches import KeptPatches
from microdit.masking.token_path import TokenPath
from microdit.model.dit import CaptionMemory

# F(x, noise label, captions) and F(x, noise label, captions, kept patches), both also with quality=: the raw network.
Network = Callable[..., Float[Tensor, "n c h w"]]
Sigma = Float[Tensor, "n 1 1 1"]


@dataclass(frozen=True)
class Objective(ABC):
    """Five functions of sigma. `sigma_data`: standard deviation of the latents; ln(sigma) is drawn from the normal
    distribution of `noise_mean` and `noise_std` in training."""

    sigma_data: Positive
    noise_mean: float = -0.6
    noise_std: Positive = 1.2

    @abstractmethod
    def c_skip(self, sigma: Sigma) -> Sigma:
        """The share of the noisy latents in what is denoised."""

    @abstractmethod
    def c_out(self, sigma: Sigma) -> Sigma:
        """The factor of the network's output."""

    @abstractmethod
    def c_in(self, sigma: Sigma) -> Sigma:
        """The factor of the network's input."""

    @abstractmethod
    def c_noise(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """The noise label that the network reads."""

    @abstractmethod
    def weight(self, sigma: Sigma) -> Sigma:
        """The weight of the squared error of what is denoised."""

    def draw(self, standard_normal: Sigma) -> Sigma:
        """Noise levels of training from draws of the standard normal; `standard_level` leads back."""
        return (self.noise_mean + self.noise_std * standard_normal).exp()

    def standard_level(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """How many deviations a noise level of training lies above the middle one."""
        return (sigma.log() - self.noise_mean) / self.noise_std


def denoise(
    network: Network,
    x: Float[Tensor, "n c h w"],
    sigma: Sigma,
    captions: Float[Tensor, "n *one l d"] | CaptionMemory,
    objective: Objective,
    kept: KeptPatches | None = None,
    quality: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n c h w"]:
    """D(x; sigma): the clean latents that the network believes are behind x; of this quality, where it is told."""
    arguments = (objective.c_in(sigma) * x, objective.c_noise(sigma.flatten()), captions)
    told = {} if quality is None else {"quality": quality}
    raw = network(*arguments, **told) if kept is None else network(*arguments, kept, **told)
    return objective.c_skip(sigma) * x + objective.c_out(sigma) * raw.to(x.dtype)


class Draws(NamedTuple):
    """The chance in one training step, drawn outside so that it can be a pure function of the sample's number."""

    noise_level: Sigma  # standard normal; becomes sigma
    noise: Float[Tensor, "n c h w"]  # standard normal
    mask: Float[Tensor, "n t"]  # uniform in [0, 1), one a patch


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
    objective: Objective,
    mask_ratio: float,
    patch_size: int,
    quality: Float[Tensor, " n"] | None = None,
) -> LossTerms:
    """The objective's weighted denoising error on the patches where the token path has its loss, and what else it
    learns.

    w(sigma) (D(x0 + sigma eps; sigma) - x0)^2, averaged over the values of each patch, then over kept patches, then
    over the batch (section 3.2 of the paper for the patches). `token_path` is the network's: it says which patches are
    kept, where the loss is, and what is added to it.
    """
    sigma = objective.draw(draws.noise_level)
    rows, columns = (side // patch_size for side in latents.shape[-2:])
    kept = token_path.keep(draws.mask, mask_ratio, (rows, columns))
    noisy = latents + sigma * draws.noise
    denoised = denoise(network, noisy, sigma, captions, objective, kept, quality)
    errors = patch_means(objective.weight(sigma) * (denoised - latents) ** 2, patch_size)
    per_sample = token_path.denoising_loss(errors, kept)
    extra = token_path.extra_loss(denoised, noisy, kept, patch_size)
    return LossTerms((per_sample + extra).mean(), per_sample.detach(), sigma.flatten(), extra.detach())


def patch_means(picture: Float[Tensor, "n c h w"], patch_size: int) -> Float[Tensor, "n t"]:
    """The mean over channels and pixels of each patch, row by row."""
    return torch.nn.functional.avg_pool2d(picture.mean(dim=1, keepdim=True), patch_size).flatten(1)
