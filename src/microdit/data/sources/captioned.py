"""What every source of captioned pictures answers: which input shards it has, and what is in each."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from microdit.files import size_of_file
from microdit.kinds import SettingsError


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


@dataclass(frozen=True)
class Ignored:
    """What lies in the source, is none of its captioned pictures, and why: it is counted and listed, no more."""

    key: str
    reason: str


Found = CaptionedImage | Unreadable | Ignored


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


def check_caption_suffix(suffix: str) -> None:
    """SettingsError for what is no end of a file's name."""
    if not suffix or "/" in suffix or os.sep in suffix:
        raise SettingsError(f"source.caption_suffix is how captions' files end, such as .caption, got {suffix!r}")


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


CAPTION_SUFFIX, CAPTION_COLUMN = ".txt", "caption"
MOST_NAMED = 10  # names in a message


def captions_beside(
    text: bytes | None, record: bytes | None, column: str | None = None, suffix: str = CAPTION_SUFFIX
) -> list[str]:
    """The captions in the text file and the `.json` beside a picture, None where there is no such file: those of the
    `.json` where it holds several, else that of the text, else that of the `.json`. With a `column`: those in that
    column of the `.json`, and no other. `suffix`: of the text file, for messages.

    NoCaptionError where there are none: words that are not UTF-8 are none, because they would be trained as garbage.
    """
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    for ending, content in ((suffix, text if column is None else None), (".json", record)):
        if content is None:
            continue
        try:
            words = content.decode("utf-8-sig")
            if "\0" in words:
                raise ValueError("it holds zero bytes, as UTF-16 and damaged files do; save it as UTF-8")
            held = " ".join(words.split()) if content is text else json.loads(words)
            found[ending] = captions_in(held, column or CAPTION_COLUMN)
            if not found[ending]:
                empty = f"the {ending} is empty"
                problems.append(empty if content is text else f"the .json {lacking(held, column or CAPTION_COLUMN)}")
        except UnicodeDecodeError as error:
            problems.append(f"the {ending} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8")
        except (ValueError, RecursionError) as error:
            problems.append(f"the {ending} cannot be read: {error}")
    if len(found.get(".json", [])) > 1:
        return found[".json"]
    captions = found.get(suffix) or found.get(".json")
    if captions:
        return captions
    if not problems and column is not None:
        unread = "; the text file is not read, because source.caption_column says where the captions are"
        problems.append(f"there is no .json with {column!r}{unread if text is not None else ''}")
    raise NoCaptionError(f"no caption: {'; '.join(problems) or f'there is neither a {suffix} nor a .json'}")


def lacking(record: object, column: str) -> str:
    """Why there is no caption in a JSON value, with what is there instead."""
    if not isinstance(record, Mapping):
        return f"holds {in_brief(record)}, not {column!r} with a text"
    held = next((record[name] for name in (column, f"{column}s") if name in record), None)
    if held is not None:
        return f"holds in {column!r} {in_brief(held)}, not a text"
    names = [str(name) for name in record if name not in (column, f"{column}s")]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    others = ", ".join(name[: MOST_NAMED * 4] for name in names[:MOST_NAMED])
    told = f", but {others}{more}; source.caption_column=KEY chooses another" if names else ""
    return f"holds no {column!r}{told}"


def in_brief(value: object) -> str:
    """A value of a file, for a message."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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
