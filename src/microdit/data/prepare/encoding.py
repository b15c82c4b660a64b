"""From pictures and captions to the rows of a latent shard, with the encoders that the caller brings."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor

CaptionStorage = Literal["full", "trimmed"]


@runtime_checkable
class ImageEncoder(Protocol):
    """What preparing asks of an autoencoder."""

    channels: int
    downscale: int

    def encode(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c h2 w2"]:
        """Scaled latents of images in [0, 1]."""
        ...


@runtime_checkable
class CaptionEncoder(Protocol):
    """What preparing asks of a text encoder."""

    channels: int
    length: int

    def tokenize(self, captions: list[str]) -> Int[Tensor, "n l"]:
        """Token ids."""
        ...

    def encode_tokens(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        """One embedding a token."""
        ...

    def lengths(self, tokens: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        """Positions up to and including the end of the text."""
        ...


@runtime_checkable
class FeatureEncoder(Protocol):
    """What preparing asks of a network whose features a network may learn from (representation alignment)."""

    name: str

    def patch_features(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n c rows columns"]:
        """Features of the places of pictures, as many whatever their size."""
        ...


@dataclass(frozen=True)
class Encoders:
    """The encoders of a preparation, their names as the configuration knows them, and where they compute. `features`:
    None where none are stored."""

    autoencoder: ImageEncoder
    text_encoder: CaptionEncoder
    autoencoder_name: str
    text_encoder_name: str
    device: str = "cpu"
    autoencoder_settings: Mapping[str, object] = field(default_factory=dict)
    text_encoder_settings: Mapping[str, object] = field(default_factory=dict)
    features: FeatureEncoder | None = None
    features_settings: Mapping[str, object] = field(default_factory=dict)


def encode_images(encoders: Encoders, images: UInt8[np.ndarray, "n h w 3"]) -> Float16[np.ndarray, "n c h2 w2"]:
    """Latents of a batch of 8-bit pictures."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(encoders.device)
    with torch.no_grad():
        return encoders.autoencoder.encode(pixels.float() / 255).half().cpu().numpy()


def encode_features(
    encoders: Encoders, images: Sequence[UInt8[np.ndarray, "side side 3"]]
) -> Sequence[Float16[np.ndarray, "c rows columns"] | None]:
    """The features of each of a batch of 8-bit pictures, None where none are asked for."""
    if encoders.features is None:
        return [None] * len(images)
    pixels = torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()).to(encoders.device)
    with torch.no_grad():
        return list(encoders.features.patch_features(pixels).half().cpu().numpy())


def encode_captions(
    encoders: Encoders, captions: Sequence[str], storage: CaptionStorage, batch_size: int = 256
) -> Iterator[tuple[Float16[np.ndarray, "l d"], int, bool]]:
    """The embedding of each caption (all positions, or with "trimmed" those up to the end of the text), how many
    positions it takes up to the end of the text, and whether some of it was cut; `batch_size` of them in memory,
    however many there are."""
    for first in range(0, len(captions), batch_size):
        batch = list(captions[first : first + batch_size])
        tokens = encoders.text_encoder.tokenize(batch)
        with torch.no_grad():
            embeddings = encoders.text_encoder.encode_tokens(tokens.to(encoders.device)).half().cpu().numpy()
        ends = encoders.text_encoder.lengths(tokens).tolist()
        cut = are_cut(encoders.text_encoder, batch, tokens, ends)
        yield from (
            (row[:end] if storage == "trimmed" else row, end, short)
            for row, end, short in zip(embeddings, ends, cut, strict=True)
        )


LAST_WORD = re.compile(r"[^\W_]+[\W_]*\Z")
LONGEST_WORD = 20  # characters; scripts without spaces have longer runs of letters, of which each is a token at least


def are_cut(
    encoder: CaptionEncoder, captions: Sequence[str], tokens: Int[Tensor, "n l"], ends: Sequence[int]
) -> list[bool]:
    """Whether each caption is longer than what was read of it: its tokens are the same without its last word."""
    full = [number for number, end in enumerate(ends) if end >= encoder.length]
    shorter = [without_last_word(captions[number]) for number in full]
    cut = [False] * len(captions)
    if full:
        for number, row in zip(full, encoder.tokenize(shorter), strict=True):
            cut[number] = bool((row == tokens[number]).all())
    return cut


def without_last_word(text: str) -> str:
    last = LAST_WORD.search(text)
    if last is None:
        return ""
    return text[: last.start()] if last.end() - last.start() <= LONGEST_WORD else text[:-1]
