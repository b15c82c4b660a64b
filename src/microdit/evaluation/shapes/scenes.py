"""True scenes of the evaluation split, whose captions no training has seen."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from microdit.data.shapes import Sample, render, sample


def held_out_scenes(domains: Sequence[str], indices: Iterable[int]) -> list[Sample]:
    """Scenes of the evaluation split by number, the domains in turn. Which skills they show is as in training."""
    return [sample("evaluation", domains[i % len(domains)], i // len(domains)) for i in indices]


AT_ONCE = 256


def rendered(scenes: Sequence[Sample], side_px: int, size: int = AT_ONCE) -> Iterable[Float[Tensor, "n 3 h w"]]:
    """The scenes' true pictures, in [0, 1], `size` at a time."""
    for start in range(0, len(scenes), size):
        pixels = np.stack([render(each.scene, side_px) for each in scenes[start : start + size]])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
