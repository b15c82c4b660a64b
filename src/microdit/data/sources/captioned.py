"""What every source of captioned pictures answers: which input shards it has, and what is in each."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from microdit.files import size_of_file


@dataclass(frozen=True)
class CaptionedImage:
    """An encoded picture (the bytes of its file) and its captions, at least one. `key` names it in its source.
    `quality`: what it is worth, from 0 to 1, where the source says so."""

    key: str
    image: bytes
    captions: Sequence[str]
    quality: float | None = None


@dataclass(frozen=True)
class Unreadable:
    """A place in the source where a captioned picture should be, and why it is none."""

    key: str
    reason: str


@dataclass(frozen=True)
class Ignored:
    """What lies in the source, is none of its captioned pictures, and why: it is counted and listed, no more."""

    key: str
    reason: str


@dataclass(frozen=True)
class Unwanted:
    """A sound picture that the settings leave out, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class EncodedImage:
    """What somebody encoded already: scaled latents by resolution in pixels, and the embedding of each caption, as the
    numbers lie in a file; their shape is that of the encoders."""

    key: str
    latents: Mapping[int, Float16[np.ndarray, " chw"]]
    embeddings: Sequence[Float16[np.ndarray, " ld"]]
    captions: Sequence[str]


Picture = CaptionedImage | Unreadable | Unwanted | Ignored
Found = Picture | EncodedImage


class Source(ABC):
    """A source is divided into input shards; output shard i is made from input shard i alone. All that lies in it is
    told once, by `read` or by `beside`: what nobody looks at is counted too."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """Plain values that say what is read. If they change, so does the output, and it needs another name."""

    @abstractmethod
    def shards(self) -> list[str]:
        """The name of each input shard, in order. FileNotFoundError where there is nothing to read."""

    @abstractmethod
    def read(self, shard: int) -> Iterator[Found]:
        """Everything in one input shard, always in the same order. OSError where the shard itself cannot be read."""

    def beside(self) -> Sequence[Unreadable | Ignored]:
        """What lies where the input shards do and is in none of them."""
        return ()

    def keys(self) -> Sequence[str] | None:
        """The keys of all that should become samples, where they are known before anything is read; else None."""
        return None

    @property
    def encoded(self) -> bool:
        """Whether it gives latents, which need no encoder any more."""
        return False

    def place(self) -> Path | None:
        """The one local file or folder that it reads; None where it reads several, or what is elsewhere."""
        return None

    def state(self, shard: int) -> str:
        """A name for the files that an input shard is read from, as they are now: another one as soon as one of them
        changes. "" where there is nothing to compare."""
        return ""


def check_shard_size(shard_size: int) -> None:
    """ValueError where a source cannot be divided into input shards of this many pictures."""
    if shard_size < 1:
        raise ValueError(f"source.shard_size must be at least 1, got {shard_size}")


LARGEST_FILE = 1 << 28  # bytes, of a picture or its caption: the largest photographs have half of that


def content_of(path: Path) -> bytes:
    """The bytes of a picture or of the words beside it. OSError where it is no ordinary file, such as a pipe or device
    that would never end, or larger than any picture."""
    if (size := size_of_file(path)) > LARGEST_FILE:
        raise OSError(f"{path} has {size:,} bytes, more than any picture")
    return path.read_bytes()
