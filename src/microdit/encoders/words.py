"""A text encoder without weights: every word has a fixed random vector, every position a sinusoid."""

import math
import re
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from microdit.encoders.protocols import TextEncoder
from microdit.kinds import Width

PADDING, END_OF_TEXT = 0, 1
FIRST_WORD = 2
WORD = re.compile(r"[^\W_]+")


@lru_cache(maxsize=1 << 17)
def word_token(word: str) -> int:
    """A 62-bit token id for any word: two words collide with probability 2^-62."""
    return FIRST_WORD + (int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little") >> 2)


@lru_cache(maxsize=1 << 17)
def token_vector(token: int, channels: int) -> Float[np.ndarray, " d"]:
    """A draw from the unit normal that belongs to this token; zeros for padding."""
    if token == PADDING:
        return np.zeros(channels, dtype=np.float32)
    # Box-Muller on the raw stream: numpy keeps Philox's bits between releases, not what its Generator makes of them.
    bits = np.random.Philox(key=token).random_raw(channels).reshape(2, -1) >> np.uint64(11)
    radius, angle = (bits + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(radius)), 2 * np.pi * angle
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32)


def position_vectors(length: int, channels: int) -> Float[Tensor, "l d"]:
    """[sin | cos] of the position, mean square 1, wavelengths from 6 to 200 tokens; the same for every `length`."""
    frequencies = 32.0 ** -torch.linspace(0, 1, channels // 2)
    angles = torch.arange(length)[:, None] * frequencies
    return math.sqrt(2) * torch.cat([angles.sin(), angles.cos()], dim=1)


MOST_NUMBERS = 1 << 20  # of a caption; the paper's have 77 x 1024


class WordsTextEncoder(TextEncoder):
    """Captions as lower-case words, each a fixed vector that needs no file and no vocabulary.

    A token id is a hash of its word and its vector is drawn from that id, so the same word has the same vector on every
    machine. Three quarters of the channels hold the word, the last quarter its position. Punctuation only separates
    words. Words past `length` - 1 are cut; padding is zeros, which a network attends to unless `masks_padding`.
    ValueError if `channels` is not a multiple of 8.
    """

    positions: Tensor

    def __init__(self, channels: Width = 64, length: Width = 24, masks_padding: bool = False) -> None:
        super().__init__()
        if channels < 8 or channels % 8:
            raise ValueError(
                f"channels must be a multiple of 8 (a quarter of them are sines and cosines), got {channels}"
            )
        if channels * length > MOST_NUMBERS:
            raise ValueError(
                f"captions of {length:,} tokens of {channels:,} channels cannot be meant: {MOST_NUMBERS:,} numbers are "
                "the most"
            )
        if length < 2:
            raise ValueError(f"length must leave room for a word and the end-of-text token, got {length}")
        self.channels, self.length, self.weights, self.masks_padding = channels, length, None, masks_padding
        self.register_buffer("positions", position_vectors(length, channels // 4), persistent=False)

    def tokenize(self, captions: list[str]) -> Int[Tensor, "n l"]:
        tokens = np.full((len(captions), self.length), PADDING, dtype=np.int64)
        for row, caption in zip(tokens, captions, strict=True):
            words = WORD.findall(caption.lower())[: self.length - 1]
            row[: len(words) + 1] = [*map(word_token, words), END_OF_TEXT]
        return torch.from_numpy(tokens)

    @torch.no_grad()
    def encode_tokens(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        distinct, which = torch.unique(tokens, return_inverse=True)
        size = self.channels - self.positions.shape[1]
        vectors = np.array([token_vector(token, size) for token in distinct.tolist()], dtype=np.float32)
        words = torch.from_numpy(vectors.reshape(-1, size)).to(self.device)[which.to(self.device)]
        present = (tokens != PADDING).to(self.device)[..., None]
        return torch.cat([words, self.positions * present], dim=-1)

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def lengths(self, tokens: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        return (tokens != PADDING).sum(dim=1)
