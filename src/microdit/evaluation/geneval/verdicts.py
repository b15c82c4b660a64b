"""What was judged, one JSON line a picture, kept as soon as it is known: the numbers are counted from these lines.

`judged.jsonl` is everything that was ever judged here, in the order it was. `results.jsonl` is what was asked for last,
in the order of its pictures, with the names that GenEval's own results.jsonl has, so that its scripts read it too.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np

from microdit.evaluation.geneval.networks import Judge, Picture
from microdit.evaluation.geneval.prompts import CLASSES, COLOURS, MOST_A_CLASS, TAGS, Sample
from microdit.evaluation.geneval.rules import considered, judge
from microdit.evaluation.journal import as_lines, shared_journal
from microdit.evaluation.sharing import ALONE, Ranks
from microdit.evaluation.subject import Report
from microdit.files import damaged, write_whole
from microdit.kinds import Limits, OneOf, check_kind
from microdit.progress import Pace, say, silently

JUDGED, RESULTS = "judged.jsonl", "results.jsonl"
CURE = "remove it and evaluate again, which judges the pictures anew"


Class = Annotated[str, OneOf(CLASSES)]
Box = Annotated[list[Annotated[float, Limits(-1e6, 1e6)]], Limits(5, 5)]
Boxes = dict[Class, Annotated[list[Box], Limits(0, MOST_A_CLASS)]]


class Verdict(TypedDict):
    """One picture's. `reason`: why it is wrong, a line each. `metadata`: its sample, `details`: by class the objects
    that counted, each left, top, right, bottom, score; both JSON in a text, as GenEval has them. `colours`: those that
    were named, by class. `key`: of picture, sample and judge."""

    filename: str
    tag: str
    prompt: str
    correct: bool
    reason: Annotated[str, Limits(0, 10_000)]
    metadata: str
    details: str
    colours: dict[Class, Annotated[list[Annotated[str, OneOf(COLOURS)]], Limits(0, MOST_A_CLASS)]]
    key: str


def judged(
    folder: Path,
    asked: Iterable[tuple[str, Sample, Picture]],
    total: int,
    judged_by: Judge,
    progress: Report,
    ranks: Ranks = ALONE,
) -> list[Verdict]:
    """The verdict on each picture, with its name and what it should show: those that are kept in `folder`, of the same
    pixels, sample and judge, else made now, each by one of the ranks. Another command that judges there waits.

    Raises DamagedFileError where a line that is kept is none.
    """
    words: list[tuple[str, dict[str, str]]] = []  # the key of each picture, and what is told of it
    pace = Pace(say if ranks.leads else silently, "judging pictures", -(-total // ranks.count))
    with shared_journal(folder / JUDGED, Verdict, CURE, ranks) as journal:
        try:
            for verdict in journal.known.values():
                boxes_of(verdict)
        except (ValueError, RecursionError) as error:
            raise damaged(folder / JUDGED, error, CURE) from error
        for number, (filename, sample, picture) in enumerate(asked, start=1):
            key = key_of(picture, sample, judged_by)
            words.append((key, words_of(filename, sample)))
            if journal.is_own(key):
                journal.add(verdict_on(filename, sample, picture, judged_by, key))
                pace.step()
            progress(number, total, "pictures judged")
        kept = journal.all()
        verdicts: list[Verdict] = [{**kept[key], **told} for key, told in words]  # type: ignore[typeddict-item]
        if ranks.leads:
            write_whole(folder / RESULTS, as_lines(verdicts))
    return verdicts


def verdict_on(filename: str, sample: Sample, picture: Picture, judged_by: Judge, key: str) -> Verdict:
    found = considered(judged_by.seen_in(picture), sample["tag"])
    judgement = judge(sample, found, judged_by.colours_in(picture))
    details = {name: [[*one.box, one.score] for one in objects] for name, objects in found.items()}
    return {  # type: ignore[return-value]
        **words_of(filename, sample),
        "correct": judgement.correct,
        "reason": "\n".join(judgement.reasons),
        "details": json.dumps(details),
        "colours": judgement.colours,
        "key": key,
    }


def words_of(filename: str, sample: Sample) -> dict[str, str]:
    """What a verdict has of the picture's sample."""
    told = {"tag": sample["tag"], "prompt": sample["prompt"], "metadata": json.dumps(sample)}
    return {"filename": filename, **told}


def key_of(picture: Picture, sample: Sample, judged_by: Judge) -> str:
    state = hashlib.blake2b(digest_size=16)
    state.update(json.dumps([judged_by.name, sample, picture.shape]).encode())
    state.update(np.ascontiguousarray(picture).data)
    return state.hexdigest()


def boxes_of(verdict: Verdict) -> Boxes:
    """The objects that counted, by class. SettingsError for what is none."""
    details = json.loads(verdict["details"])
    check_kind(details, Boxes, "details")
    return details


def scores(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """The share of right pictures of each tag that was asked for, and `overall`, the mean of these shares."""
    of_tags = {tag: [verdict["correct"] for verdict in verdicts if verdict["tag"] == tag] for tag in TAGS}
    shares = {tag: float(np.mean(right)) for tag, right in of_tags.items() if right}
    return {**shares, "overall": float(np.mean(list(shares.values())))}
