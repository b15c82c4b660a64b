"""What every source of captioned pictures answers: which input shards it has, and what is in each."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from microdit.files import size_of_file


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


def check_shard_size(shard_size: int) -> None:
    """ValueError where a source cannot be divided into input shards of this many pictures."""
    if shard_size < 1:
        raise ValueError(f"source.shard_size must be at least 1, got {shard_size}")


MOST_CAPTIONS = 100  # of one picture: all of them are encoded and kept
LONGEST_CAPTION = 100_000  # characters
LARGEST_FILE = 1 << 28  # bytes, of a picture or its caption: the largest photographs have half of that


def content_of(path: Path) -> bytes:
    """The bytes of a picture or of the words beside it. OSError where it is no ordinary file, such as a pipe or device
    that would never end, or larger than any picture."""
    if (size := size_of_file(path)) > LARGEST_FILE:
        raise OSError(f"{path} has {size:,} bytes, more than any picture")
    return path.read_bytes()


class NoCaptionError(ValueError):
    """Nothing beside a picture is a caption; the message says what is there instead."""


def captions_beside(text: bytes | None, record: bytes | None, column: str) -> list[str]:
    """The captions in the `.txt` and the `.json` beside a picture, None where there is no such file: those of the
    `.json` where it holds several, else that of the `.txt`, else that of the `.json`.

    NoCaptionError where there are none: words that are not UTF-8 are none, because they would be trained as garbage.
    """
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    for suffix, content in ((".txt", text), (".json", record)):
        if content is None:
            continue
        try:
            words = content.decode("utf-8-sig")
            found[suffix] = captions_in(" ".join(words.split()) if suffix == ".txt" else json.loads(words), column)
            if not found[suffix]:
                problems.append("the .txt is empty" if suffix == ".txt" else f"the .json holds no {column!r}")
        except UnicodeDecodeError as error:
            problems.append(f"the {suffix} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8")
        except (ValueError, RecursionError) as error:
            problems.append(f"the {suffix} cannot be read: {error}")
    if len(found.get(".json", [])) > 1:
        return found[".json"]
    captions = found.get(".txt") or found.get(".json")
    if not captions:
        raise NoCaptionError(f"no caption: {'; '.join(problems) or 'there is neither a .txt nor a .json'}")
    return captions


def captions_in(record: object, column: str = "caption") -> list[str]:
    """The captions in a JSON value: a text, a list of texts, or the `column` of an object. [] where there are none,
    ValueError where there are more than MOST_CAPTIONS, or one is longer than any."""
    if isinstance(record, Mapping):
        return captions_in(record.get(column)) or captions_in(record.get(f"{column}s"))
    texts = record if isinstance(record, list) else [record]
    if len(texts) > MOST_CAPTIONS:
        raise ValueError(f"it has {len(texts):,} captions, and {MOST_CAPTIONS} of a picture are the most")
    if (longest := max((len(text) for text in texts if isinstance(text, str)), default=0)) > LONGEST_CAPTION:
        raise ValueError(f"it has a caption of {longest:,} characters, and {LONGEST_CAPTION:,} are the most")
    stripped = [text.strip() for text in texts if isinstance(text, str)]
    # JSON can hold halves of characters, which no encoder takes.
    return [text.encode("utf-8", "replace").decode() for text in stripped if text]
