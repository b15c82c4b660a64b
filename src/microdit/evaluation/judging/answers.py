"""Questions put to a judge, each answer kept as soon as it is known, one JSON line each: nothing is asked twice.

`asked.jsonl` is everything that was ever asked here, in the order in which it was answered.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from threading import Thread
from typing import TextIO

import numpy as np

from microdit.evaluation.journal import as_lines, kept_lines
from microdit.evaluation.judging.judges import Judge, first_question
from microdit.evaluation.judging.questions import Answer, Question, chosen, probabilities_of
from microdit.evaluation.subject import Report
from microdit.files import alone_in, appending, sealed
from microdit.progress import say

ASKED = "asked.jsonl"
CURE = "remove it and evaluate again, which asks anew"
CHARACTERS_A_TOKEN, PIXELS_A_TOKEN, TOKENS_WRITTEN = 4, 28 * 28, 5  # about, as Qwen's models count
MOST_TEXT = 2000  # characters of a reply
AFTER_CTRL_C_S = 5.0  # that answers under way are waited for; a server may take half an hour


def check_first(folder: Path, judge: Judge) -> None:
    """Asks a judge that has answered nothing in `folder` yet, before pictures are drawn for it. JudgeError."""
    if judge.at_once > 1 and not (folder / ASKED).is_file():
        first_question(judge)


def answered(folder: Path, questions: Callable[[], Iterator[Question]], judge: Judge, progress: Report) -> list[Answer]:
    """The answer to each question in order: that which is kept in `folder`, of the same pictures, words and judge, else
    asked now, several at once where the judge can. What it costs in tokens is said before and after. Another process
    that asks there waits.

    Raises JudgeError as the judge does, when what was under way is kept; DamagedFileError where a kept line is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with alone_in(folder):
        kept = {answer["key"]: answer for answer in kept_lines(folder / ASKED, Answer, CURE)}
        expected = {(key := key_of(each, judge)): (key in kept, expected_tokens(each)) for each in questions()}
        new = [tokens for known, tokens in expected.values() if not known]
        say(f"{judge.name}: {len(expected):,} questions, {len(new):,} to be asked, about {sum(new):,} tokens")
        keys = []
        journal = appending(folder / ASKED, encoding="utf-8")
        with journal as file, Asking(judge, file, kept, len(new), progress) as asking:
            for question in questions():
                keys.append(key_of(question, judge))
                asking.ask(keys[-1], question)
        if new:
            say(f"{judge.name}: {len(new):,} questions cost {asking.read:,} tokens read and {asking.written:,} written")
    return [kept[key] for key in keys]


class Asking:
    """Questions under way. Answers are written to `file` and put into `kept` by the thread that asks; when the block
    ends, also with an error, those that are under way are waited for and kept; after Ctrl-C for a moment."""

    def __init__(self, judge: Judge, file: TextIO, kept: dict[str, Answer], total: int, progress: Report):
        self.judge, self.file, self.kept, self.total, self.progress = judge, file, kept, total, progress
        self.under_way: dict[Future[Answer], str] = {}
        self.done = self.read = self.written = 0

    def __enter__(self) -> "Asking":
        return self

    def __exit__(self, *raised: object) -> None:
        done = list(wait(self.under_way, AFTER_CTRL_C_S if raised[0] is KeyboardInterrupt else None).done)
        errors = [future.exception() for future in done]
        for future, error in zip(done, errors, strict=True):
            if error is None:
                self.keep(future)
        if raised[0] is None and (failed := [error for error in errors if error is not None]):
            raise failed[0]

    def ask(self, key: str, question: Question) -> None:
        """Asks what is neither kept nor under way, when there is room."""
        if key in self.kept or key in self.under_way.values():
            return
        while len(self.under_way) >= self.judge.at_once:
            self.settle()
        self.under_way[begun(answer_to, question, self.judge, key)] = key

    def settle(self) -> None:
        """Waits until there is room. Raises what the judge raised."""
        for future in wait(self.under_way, return_when=FIRST_COMPLETED).done:
            self.keep(future)

    def keep(self, future: Future[Answer]) -> None:
        answer = future.result()
        del self.under_way[future]
        self.file.write(as_lines([sealed(answer)]))
        self.file.flush()
        self.kept[answer["key"]] = answer
        self.done, self.read = self.done + 1, self.read + answer["tokens_read"]
        self.written += answer["tokens_written"]
        self.progress(self.done, self.total, f"questions, {self.read + self.written:,} tokens")


def begun(call: Callable[..., Answer], *arguments: object) -> Future[Answer]:
    """A call in a thread of its own, which holds up no process that ends: those of a pool would be waited for."""
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call(*arguments))
        except BaseException as error:  # raised again by whoever asks for the result
            future.set_exception(error)

    Thread(target=run, name="judge", daemon=True).start()
    return future


def answer_to(question: Question, judge: Judge, key: str) -> Answer:
    reply = judge.ask(question)
    return {
        "about": question.about,
        "question": question.words,
        "vote": question.vote,
        "answer": chosen(reply, question.choices),
        "text": reply.text[:MOST_TEXT],
        "probabilities": probabilities_of(reply, question.choices),
        "tokens_read": reply.tokens_read,
        "tokens_written": reply.tokens_written,
        "key": key,
    }


def key_of(question: Question, judge: Judge) -> str:
    """The same for the same pixels, words, choices and vote, put to the same judge."""
    state = hashlib.blake2b(digest_size=16)
    asked = [judge.name, question.words, question.choices, question.temperature, question.vote, question.probable]
    state.update(json.dumps([*asked, [picture.shape for picture in question.pictures]]).encode())
    for picture in question.pictures:
        state.update(np.ascontiguousarray(picture).data)
    return state.hexdigest()


def expected_tokens(question: Question) -> int:
    pixels = sum(picture.shape[0] * picture.shape[1] for picture in question.pictures)
    return pixels // PIXELS_A_TOKEN + len(question.words) // CHARACTERS_A_TOKEN + TOKENS_WRITTEN


def unanswered(answers: Iterable[Answer], choices: Sequence[str]) -> dict[str, float]:
    """How many answers are none, by what they are instead: `refused` and `unreadable`."""
    found = [answer["answer"] for answer in answers if answer["answer"] not in choices]
    return {"refused": float(found.count("refused")), "unreadable": float(found.count("unreadable"))}
