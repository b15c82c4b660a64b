"""Questions put to a judge, each answer kept as soon as it is known, one JSON line each: nothing is asked twice.

`asked.jsonl` is everything that was ever asked here, in the order in which it was answered.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from threading import Thread

import numpy as np

from microdit.evaluation.journal import Journal, shared_journal
from microdit.evaluation.judging.judges import Judge, first_question
from microdit.evaluation.judging.questions import Answer, Question, chosen, probabilities_of
from microdit.evaluation.sharing import ALONE, Ranks
from microdit.evaluation.subject import Report
from microdit.progress import Pace, say, silently

ASKED = "asked.jsonl"
CURE = "remove it and evaluate again, which asks anew"
CHARACTERS_A_TOKEN, PIXELS_A_TOKEN, TOKENS_WRITTEN = 4, 28 * 28, 5  # about, as Qwen's models count
MOST_TEXT = 2000  # characters of a reply
AFTER_CTRL_C_S = 5.0  # that answers under way are waited for; a server may take half an hour


def check_first(folder: Path, judge: Judge, ranks: Ranks) -> None:
    """Asks a judge that has answered nothing in `folder` yet, before pictures are drawn for it. JudgeError."""
    if judge.at_once > 1:
        ranks.of_first(lambda: None if (folder / ASKED).is_file() else first_question(judge))


def answered(
    folder: Path,
    questions: Callable[[], Iterator[Question]],
    judge: Judge,
    progress: Report,
    ranks: Ranks = ALONE,
) -> list[Answer]:
    """The answer to each question in order: that which is kept in `folder`, of the same pictures, words and judge, else
    asked now, each by one of the ranks, and several at once where the judge can. What it costs in tokens is said before
    and after. Another command that asks there waits.

    Raises JudgeError as the judge does, when what was under way is kept; DamagedFileError where a kept line is none.
    """
    tell = say if ranks.leads else silently
    with shared_journal(folder / ASKED, Answer, CURE, ranks) as journal:
        expected = {(key := key_of(each, judge)): (key in journal.known, expected_tokens(each)) for each in questions()}
        new = [tokens for known, tokens in expected.values() if not known]
        tell(f"{judge.name}: {len(expected):,} questions, {len(new):,} to be asked, about {sum(new):,} tokens")
        keys, own = [], sum(map(ranks.has, range(len(new))))
        at_once = max(1, judge.at_once // ranks.count)
        with Asking(judge, at_once, journal, own, progress, Pace(tell, "asking", own)) as asking:
            for question in questions():
                keys.append(key_of(question, judge))
                if journal.is_own(keys[-1]):
                    asking.ask(keys[-1], question)
        read, written = (sum(each) for each in zip(*ranks.gathered((asking.read, asking.written)), strict=True))
        if new:
            tell(f"{judge.name}: {len(new):,} questions cost {read:,} tokens read and {written:,} written")
        answers = journal.all()
    return [answers[key] for key in keys]


class Asking:
    """Questions under way, `at_once` at most. Answers are put into the journal by the thread that asks; when the block
    ends, also with an error, those that are under way are waited for and kept; after Ctrl-C for a moment."""

    def __init__(self, judge: Judge, at_once: int, journal: Journal[Answer], total: int, progress: Report, pace: Pace):
        self.judge, self.at_once, self.journal, self.total = judge, at_once, journal, total
        self.progress, self.pace = progress, pace
        self.under_way: set[Future[Answer]] = set()
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
        """Asks, when there is room."""
        while len(self.under_way) >= self.at_once:
            self.settle()
        self.under_way.add(begun(answer_to, question, self.judge, key))

    def settle(self) -> None:
        """Waits until there is room. Raises what the judge raised."""
        for future in wait(self.under_way, return_when=FIRST_COMPLETED).done:
            self.keep(future)

    def keep(self, future: Future[Answer]) -> None:
        answer = future.result()
        self.under_way.discard(future)
        self.journal.add(answer)
        if not self.done:
            self.pace.step(min(self.at_once, self.total))
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
