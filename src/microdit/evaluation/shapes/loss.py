"""The denoising loss of held-out scenes, noise level by noise level: where a network is good, not only how good."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from microdit.evaluation.metric import Metric
from microdit.evaluation.shapes.scenes import held_out_scenes, rendered
from microdit.evaluation.sharing import ALONE
from microdit.evaluation.subject import Count, Domains, Subject, silent
from microdit.kinds import Limits, Positive
from microdit.objectives.edm import EDM
from microdit.objectives.objective import denoise
from microdit.pipeline import LatentDiffusion

BATCH = 64
Scenes = tuple[Float[Tensor, "n 3 h w"], list[str]]
"""Pictures in [0, 1] and their captions."""


@dataclass(frozen=True)
class ShapesDenoisingLoss(Metric):
    """The unmasked loss of `count` held-out scenes at each of `noise_levels` (sigma), with the same noise in every run.

    No picture is drawn, so neither sampler nor guidance is in it.
    """

    domains: Domains
    count: Count
    noise_levels: Annotated[Sequence[Positive], Limits(1, 1000)]
    seed: int

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], None]:
        """`denoising_loss/sigma_S` for each noise level, and `denoising_loss/mean` over them."""
        scenes = self.scenes(subject.pipeline)
        losses = loss_by_noise_level(subject.pipeline, scenes, self.noise_levels, self.seed, subject)
        numbers = {f"denoising_loss/sigma_{sigma:g}": loss for sigma, loss in losses.items()}
        return numbers | {"denoising_loss/mean": float(np.mean(list(losses.values())))}, None

    def scenes(self, pipeline: LatentDiffusion) -> list[Scenes]:
        """Held-out scenes in batches, drawn at the size the network was trained at."""
        samples = held_out_scenes(self.domains, range(self.count))
        side_px = pipeline.dit.input_size * pipeline.autoencoder.downscale
        batches = zip(rendered(samples, side_px, BATCH), range(0, len(samples), BATCH), strict=True)
        return [(images, [each.caption for each in samples[start : start + BATCH]]) for images, start in batches]


@torch.no_grad()
def loss_by_noise_level(
    pipeline: LatentDiffusion,
    scenes: Sequence[Scenes],
    noise_levels: Sequence[float],
    seed: int,
    subject: Subject | None = None,
) -> dict[float, float]:
    """EDM's weighted denoising error on all patches, mean over all scenes, for each noise level (sigma).

    The noise depends on the seed and the scene's place alone: it is the same for every network and noise level.
    `subject`: whose ranks share the scenes, and whose bar shows how far they are.
    """
    training = pipeline.dit.training
    weighting = EDM(pipeline.objective.sigma_data)  # whatever objective it learned by: comparable numbers
    pipeline.dit.eval()
    generator = torch.Generator().manual_seed(seed)
    shape = pipeline.latent_shape()
    units = [(images, captions, torch.randn(len(images), *shape, generator=generator)) for images, captions in scenes]
    ranks, progress = (ALONE, silent) if subject is None else (subject.ranks, subject.progress)
    own = sum(map(ranks.has, range(len(units))))
    batches = itertools.count()

    def errors(unit: tuple[Tensor, list[str], Tensor]) -> list[float]:
        """Of each noise level the error of a batch's scenes, summed."""
        images, captions, noise = unit
        latents = pipeline.autoencoder.encode(images.to(pipeline.device))
        embeddings = pipeline.text_encoder.encode(captions).to(pipeline.device)
        noise, batch, found = noise.to(latents), next(batches), []
        for number, level in enumerate(noise_levels):
            sigma = torch.full((len(latents), 1, 1, 1), level, device=latents.device)
            denoised = denoise(pipeline.dit, latents + sigma * noise, sigma, embeddings, pipeline.objective)
            weight = float(weighting.weight(torch.tensor(level, dtype=torch.float64)))
            found.append(weight * float(((denoised - latents) ** 2).mean()) * len(latents))
            progress(batch * len(noise_levels) + number + 1, own * len(noise_levels))
        return found

    totals, count = dict.fromkeys(noise_levels, 0.0), sum(len(images) for images, _ in scenes)
    for of_batch in ranks.each(units, errors):
        for level, error in zip(noise_levels, of_batch, strict=True):
            totals[level] += error
    pipeline.dit.train(training)
    return {level: total / count for level, total in totals.items()}
