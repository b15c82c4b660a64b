"""Which words that are told of a picture are its captions, and which numbers told of it leave it out."""

import ast
import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from microdit.data.sources.images import FilteredImageError

MOST_CAPTIONS = 100  # of one picture: all of them are encoded and kept
LONGEST_CAPTION = 100_000  # characters
CAPTION_SUFFIX, CAPTION_COLUMN = ".txt", "caption"
MOST_NAMED = 10  # names in a message
LONGEST_LIST = 1 << 20  # characters of a list of captions in a cell
# What programs write where there is nothing.
EMPTY_CELLS = frozenset(("nan", "none", "null", "n/a", "<na>"))
Columns = str | Sequence[str]
Lines = Literal["joined", "separate"]
Bounds = Mapping[str, float] | None


class NoCaptionError(ValueError):
    """Nothing that is told of a picture is a caption; the message says what is there instead."""


def bounds(least: Bounds, most: Bounds) -> dict[str, object]:
    """What the identity of a source says of the numbers that pictures must have."""
    found: dict[str, object] = {"least": dict(least)} if least else {}
    return found | ({"most": dict(most)} if most else {})


def check_numbers(record: object, least: Mapping[str, float], most: Mapping[str, float]) -> None:
    """Raises FilteredImageError where a number in a record is out of bounds, or there is none."""
    for name in dict.fromkeys((*least, *most)):
        number = number_in(value_of(record, name))
        if number is None:
            raise FilteredImageError(f"there is no number in {name!r}, which is to be compared")
        if number < least.get(name, -math.inf):
            raise FilteredImageError(f"{name!r} is {number:g}, which is less than {least[name]:g}")
        if number > most.get(name, math.inf):
            raise FilteredImageError(f"{name!r} is {number:g}, which is more than {most[name]:g}")


def quality_in(record: object, column: str | None) -> float | None:
    """How good a record says that its picture is, None where no column is named. ValueError for what is no number from
    0 to 1."""
    if column is None:
        return None
    number = number_in(value_of(record, column))
    if number is None or not 0 <= number <= 1:
        raise ValueError(f"no quality: {column!r} holds {in_brief(value_of(record, column))}, not a number from 0 to 1")
    return number


def number_in(value: object) -> float | None:
    """A cell as a number; None for what is none."""
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number


def value_of(record: object, column: str) -> object:
    """What a record holds under a name, or, where it has none, under the parts of it with dots between; else None."""
    if not isinstance(record, Mapping):
        return None
    if column in record or "." not in column:
        return record.get(column)
    first, _, rest = column.partition(".")
    return value_of(record.get(first), rest)


def told_in(record: object, column: str) -> object:
    """What a record holds under a name of captions, or under its plural."""
    found = value_of(record, column)
    return value_of(record, f"{column}s") if found is None else found


def names_of(columns: Columns) -> list[str]:
    return [columns] if isinstance(columns, str) else list(columns)


def captions_in(record: object, columns: Columns = CAPTION_COLUMN) -> list[str]:
    """The captions in a JSON value: a text, a list of texts, or the `columns` of an object, one after the other. []
    where there are none, ValueError where there are more than MOST_CAPTIONS, or one is longer than any."""
    if isinstance(record, Mapping):
        names = names_of(columns)
        found = [captions_in(value_of(record, name)) or captions_in(value_of(record, f"{name}s")) for name in names]
        return found[0] if len(found) == 1 else at_most([*dict.fromkeys(text for one in found for text in one)])
    texts = at_most(record if isinstance(record, list) else [record])
    if (longest := max((len(text) for text in texts if isinstance(text, str)), default=0)) > LONGEST_CAPTION:
        raise ValueError(f"it has a caption of {longest:,} characters, and {LONGEST_CAPTION:,} are the most")
    stripped = [text.strip() for text in texts if isinstance(text, str)]
    # JSON can hold halves of characters, which no encoder takes.
    return [text.encode("utf-8", "replace").decode() for text in stripped if text]


def at_most(texts: list) -> list:
    if len(texts) > MOST_CAPTIONS:
        raise ValueError(f"it has {len(texts):,} captions, and {MOST_CAPTIONS} of a picture are the most")
    return texts


def text_in(content: bytes) -> str:
    """The words in a text file. ValueError, which UnicodeDecodeError is, for what is not UTF-8: it would be trained as
    garbage."""
    words = content.decode("utf-8-sig")
    if "\0" in words:
        raise ValueError("it holds zero bytes, as UTF-16 and damaged files do; save it as UTF-8")
    return words


def in_lines(words: str, lines: Lines) -> object:
    """The captions in the words of a text file: one, or one a line."""
    return [line.strip() for line in words.splitlines()] if lines == "separate" else " ".join(words.split())


def captions_beside(
    text: bytes | None,
    record: bytes | None,
    column: Columns | None = None,
    suffix: str = CAPTION_SUFFIX,
    lines: Lines = "joined",
) -> list[str]:
    """The captions in the text file and the `.json` beside a picture, None where there is no such file: those of the
    `.json` where it holds several, else that of the text, else that of the `.json`. With a `column`: those in that
    column of the `.json`, and no other. `suffix`: of the text file, for messages.

    NoCaptionError where there are none: words that are not UTF-8 are none.
    """
    found: dict[str, list[str]] = {}
    problems: list[str] = []
    for ending, content in ((suffix, text if column is None else None), (".json", record)):
        if content is None:
            continue
        try:
            words = text_in(content)
            held = in_lines(words, lines) if content is text else json.loads(words)
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
        problems.append(
            f"there is no .json with {' or '.join(map(repr, names_of(column)))}{unread if text is not None else ''}"
        )
    raise NoCaptionError(f"no caption: {'; '.join(problems) or f'there is neither a {suffix} nor a .json'}")


def lacking(record: object, columns: Columns) -> str:
    """Why there is no caption in a JSON value, with what is there instead."""
    column, *_ = names_of(columns)
    if not isinstance(record, Mapping):
        return f"holds {in_brief(record)}, not {column!r} with a text"
    held = next((found for name in (column, f"{column}s") if (found := value_of(record, name)) is not None), None)
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


def as_texts(caption: object) -> object:
    """A cell as a text or a list of texts, which CSV holds as JSON or as Python writes it; None for a text that stands
    for an empty cell."""
    if not isinstance(caption, str):
        return caption
    if caption.strip().lower() in EMPTY_CELLS:
        return None
    text = caption.strip()
    if text.startswith("[") and text.endswith("]") and len(text) <= LONGEST_LIST:
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text)
            except (ValueError, RecursionError, SyntaxError, MemoryError):
                continue
            if isinstance(found, list) and (not found or any(isinstance(one, str) for one in found)):
                return found
    return caption
