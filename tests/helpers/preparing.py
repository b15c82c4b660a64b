"""What processes that prepare data import: encoders that draw, and sources that end their process."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from microdit.data.prepare.encoding import Encoders
from microdit.data.sources.captioned import Found
from microdit.data.sources.folder import FolderSource
from microdit.encoders import PixelAutoencoder, WordsTextEncoder


class DrawingAutoencoder(PixelAutoencoder):
    """Its latents are drawn, as from a posterior."""

    def encode(self, images: Tensor) -> Tensor:
        latents = super().encode(images)
        return latents + 0.1 * torch.randn_like(latents)


def encoders_on(device: str) -> Encoders:
    """Encoders on a device; FileNotFoundError on one that is called "nowhere"."""
    if device == "nowhere":
        raise FileNotFoundError("there are no weights")
    return Encoders(DrawingAutoencoder(), WordsTextEncoder(channels=8, length=6), "drawing", "words", device)


class DeadlySource(FolderSource):
    """A folder whose input shard `deadly` kills who reads it, in the middle: once, or `always`."""

    def __init__(self, path: Path, marks: Path, deadly: int = 2, always: bool = False) -> None:
        super().__init__(str(path), shard_size=5)
        self.marks, self.deadly, self.always = marks, deadly, always

    def read(self, shard: int) -> Iterator[Found]:
        for place, item in enumerate(super().read(shard)):
            if shard == self.deadly and place == 3 and (self.always or not self.marks.exists()):
                self.marks.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield item
