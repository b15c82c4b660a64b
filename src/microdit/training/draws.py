"""The chance in training: a function of (seed, position of the sample), whatever the rank, worker or restart."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils._pytree import tree_map

from microdit.data.stream.buckets import BucketStream
from microdit.data.stream.stream import LatentStream
from microdit.objectives.objective import Draws

# Separate streams of the counter-based generator, so that validation never sees training's numbers.
TRAINING, VALIDATION = 1, 2


class Chance(NamedTuple):
    """What is drawn for each sample of a batch: the objective's three draws, whether its caption is dropped, and a draw
    of U[0, 1) that says whether its quality is."""

    draws: Draws
    drop_caption: Bool[Tensor, " n"]
    quality: Float[Tensor, " n"]


def draw_chance(
    seed: int,
    stream: int,
    positions: Sequence[int],
    latent_shape: tuple[int, ...],
    patch_size: int,
    caption_dropout: float,
) -> Chance:
    """Draws for the samples at these positions, in this order: noise level, noise, mask; then the fates of caption and
    quality.

    Philox is counter-based: the position selects a block of its output, so no generator has a state to save.
    """
    _, height, width = latent_shape
    patches = (height // patch_size) * (width // patch_size)
    noise_level = np.empty((len(positions), 1, 1, 1), dtype=np.float32)
    noise = np.empty((len(positions), *latent_shape), dtype=np.float32)
    mask = np.empty((len(positions), patches), dtype=np.float32)
    caption, quality = np.empty(len(positions)), np.empty(len(positions))
    for row, position in enumerate(positions):
        philox = np.random.Philox(key=[seed, stream], counter=[0, 0, 0, position])
        generator = np.random.Generator(philox)
        noise_level[row] = generator.standard_normal(dtype=np.float32)
        generator.standard_normal(out=noise[row], dtype=np.float32)
        generator.random(out=mask[row], dtype=np.float32)
        caption[row], quality[row] = generator.random(), generator.random()
    draws = Draws(torch.from_numpy(noise_level), torch.from_numpy(noise), torch.from_numpy(mask))
    return Chance(draws, torch.from_numpy(caption < caption_dropout), torch.from_numpy(quality))


class Samples:
    """Samples of a stream together with their chance, by position: all that a step of training needs."""

    def __init__(
        self,
        latents: LatentStream | BucketStream,
        seed: int,
        stream: int,
        patch_size: int,
        caption_dropout: float,
        pin_memory: bool = False,
        quality_dropout: float | None = None,
    ):
        self.quality_dropout = quality_dropout
        self.latents, self.seed, self.stream = latents, seed, stream
        self.patch_size, self.caption_dropout, self.pin_memory = patch_size, caption_dropout, pin_memory

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, positions: Sequence[int]) -> dict[str, Any]:
        """The batch of these positions, already collated."""
        batch: dict[str, Any] = {**self.latents.__getitems__(positions)}
        shape = tuple(batch["latents"].shape)[1:]
        chance = draw_chance(self.seed, self.stream, positions, shape, self.patch_size, self.caption_dropout)
        told = {"draws": chance.draws, "drop_caption": chance.drop_caption}
        if self.quality_dropout is not None:
            quality = batch["quality"][:, 0].float()
            told["quality"] = quality.masked_fill(chance.quality < self.quality_dropout, math.nan)
        if self.pin_memory:  # so that copies to a GPU do not wait for it
            told = tree_map(Tensor.pin_memory, told)
        return {**batch, **told}
