"""What every source of captioned pictures answers: which input shards it has, and what is in each."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CaptionedImage:
    """An encoded picture (the bytes of its file) and its captions, at least one. `key` names it in its source."""

    key: str
    image: bytes
    captions: Sequence[str]


@dataclass(frozen=True)
class Unreadable:
    """A place in the source where a captioned picture should be, and why it is none."""

    key: str
    reason: str


class Source(ABC):
    """A source is divided into input shards; output shard i is made from input shard i alone."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, object]:
        """Plain values that say what is read. If they change, so does the output, and it needs another name."""

    @abstractmethod
    def shards(self) -> list[str]:
        """The name of each input shard, in order. FileNotFoundError where there is nothing to read."""

    @abstractmethod
    def read(self, shard: int) -> Iterator[CaptionedImage | Unreadable]:
        """Everything in one input shard, always in the same order. OSError where the shard itself cannot be read."""


def captions_in(record: object, column: str = "caption") -> list[str]:
    """The captions in a JSON value: a text, a list of texts, or the `column` of an object. [] where there are none."""
    if isinstance(record, Mapping):
        return captions_in(record.get(column)) or captions_in(record.get(f"{column}s"))
    texts = record if isinstance(record, list) else [record]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]
