"""Memory for batches, used again: touching fresh memory costs more than reading a batch into it."""

import weakref
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float16
from torch import Tensor

FREE_BUFFERS = 16


class BatchBuffers:
    """Hands out half-precision tensors whose memory comes back when nothing refers to it any more."""

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def take(self, shape: tuple[int, ...]) -> Float16[Tensor, "*shape"]:
        """A tensor of any content."""
        size = int(np.prod(shape))
        free = self._free.setdefault(size, [])
        buffer = free.pop() if free else np.empty(size, np.float16)
        # torch keeps `lent` for as long as any tensor shares its storage.
        lent = buffer[:]
        weakref.finalize(lent, give_back, free, buffer).atexit = False
        return torch.from_numpy(lent).view(shape)

    def __reduce__(self) -> tuple[Callable[[], "BatchBuffers"], tuple[()]]:
        return BatchBuffers, ()


def give_back(free: list[np.ndarray], buffer: np.ndarray) -> None:
    """Keep a buffer for the next batch, unless many lie there already."""
    if len(free) < FREE_BUFFERS:
        free.append(buffer)
