"""What a judge is asked, what it says, and which of the choices that is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypedDict

from jaxtyping import UInt8
from numpy import ndarray

from microdit.kinds import LARGEST_INTEGER, Limits

Picture = UInt8[ndarray, "h w 3"]

REFUSED, UNREADABLE = "refused", "unreadable"
YES_OR_NO = ("yes", "no")
FIRST_OF_TWO = ("first", "second", "tie")
THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
SORRY = re.compile(
    r"\b(i'm sorry|i am sorry|sorry, (but )?i|i apologi[sz]e|i can't|i can not|i cannot|i won't|i'm unable|i am unable|"
    r"i'm not able|i am not able|unable to (assist|help|answer|see|view|process)|as an ai)\b"
)


class JudgeError(OSError):
    """A judge could not be asked; the message says which, why, and what to do. What it answered before is kept."""


@dataclass(frozen=True)
class Question:
    """`words` about `pictures`, to be answered by one of `choices`, words in lower case. `about`: what the pictures
    are called. `temperature`: 0 for the likeliest answer; else it is drawn, and each `vote` is another draw.
    `probable`: whether the probabilities of the choices are wanted."""

    pictures: tuple[Picture, ...]
    words: str
    choices: tuple[str, ...]
    about: str
    temperature: float = 0.0
    vote: int = 0
    probable: bool = False


@dataclass(frozen=True)
class Reply:
    """What a judge said. `refused`: whether it said by itself that this is no answer. `first`: the probabilities of
    the likeliest first tokens, where it tells them; `tokens_read` and `tokens_written`: as it counts them."""

    text: str
    refused: bool
    first: Mapping[str, float] | None
    tokens_read: int
    tokens_written: int


Tokens = Annotated[int, Limits(0, LARGEST_INTEGER)]
Probability = Annotated[float, Limits(0, 1.001)]


class Answer(TypedDict):
    """A question with its answer, as it is kept. `answer`: one of the choices, REFUSED or UNREADABLE; `text`: its
    beginning; `probabilities`: of each choice to be the first word. `key`: of pictures, question and judge."""

    about: str
    question: str
    vote: int
    answer: str
    text: str
    probabilities: dict[str, Probability] | None
    tokens_read: Tokens
    tokens_written: Tokens
    key: str


def chosen(reply: Reply, choices: tuple[str, ...]) -> str:
    """The choice that a reply makes: its first word, or the only choice that is named in it. REFUSED where it says that
    it will not, UNREADABLE where neither is told."""
    if reply.refused:
        return REFUSED
    text = THOUGHTS.sub(" ", reply.text).replace("\u2019", "'").casefold()
    words = WORD.findall(text)
    named = set(words) & set(choices)
    if SORRY.search(text) and not (words and words[0] in choices):
        return REFUSED
    if len(named) == 1:
        return named.pop()
    first = re.match(r"\W*([^\W_]+)\s*(?:[^\s\w]|\n|\Z)", text)  # "Yes, there is no doubt"
    return first[1] if first and first[1] in choices else UNREADABLE


def probabilities_of(reply: Reply, choices: tuple[str, ...]) -> dict[str, float] | None:
    """How likely each choice was to be the first token; None where the judge does not tell, or where none of them could
    be, as of one that thinks first."""
    if reply.first is None:
        return None
    found = dict.fromkeys(choices, 0.0)
    for token, probability in reply.first.items():
        word = token.strip(" \t\n\u2581\u0120*\"'").casefold()  # some tokenizers mark a space in their own way
        if word in found:
            found[word] += probability
    return {name: min(1.0, value) for name, value in found.items()} if any(found.values()) else None
