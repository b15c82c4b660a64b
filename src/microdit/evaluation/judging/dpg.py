"""DPG-Bench (Hu et al. 2024): long prompts, each with questions, of which some make no sense where others fail."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
from PIL import Image

from microdit.evaluation.judging.answers import answered, check_first, unanswered
from microdit.evaluation.judging.judges import JudgeSettings, check_judge, read_judge
from microdit.evaluation.judging.prompts import Asked, broad, read_dpg
from microdit.evaluation.judging.questions import YES_OR_NO, JudgeError, Question
from microdit.evaluation.judging.sets import PictureSet, pictures_of, sheet, some
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import Count, Sampling, Subject
from microdit.kinds import Copied, Limits
from microdit.pipeline import LatentDiffusion

WORDS = "{question} Answer with yes or no alone."
SHOWN, SHOWN_CHARACTERS = 12, 120


@dataclass(frozen=True)
class Dpg(Metric):
    """DPG-Bench: `prompts_folder` holds a prompt a file, `questions_file` is the CSV of questions about them; of the
    prompts, the first `prompts` (None: all)."""

    option: ClassVar[str] = "metrics.dpg"
    prompts_folder: Copied
    questions_file: Copied
    prompts: Count | None
    pictures_per_prompt: Annotated[int, Limits(1, 100)]
    judge: JudgeSettings
    sampling: Sampling

    def ask(self, pipeline: LatentDiffusion) -> None:
        super().ask(pipeline)
        self.asked()
        check_judge(self.judge, f"{self.option}.judge")

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`dpg/overall`, 0 to 100: the mean over prompts of the share of questions answered yes, of which none counts
        where one that it depends on is answered no; `dpg/entity`, `dpg/attribute`, ...: the share of yes by category,
        whatever it depends on, as the authors count. `dpg/pictures`, and `refused` and `unreadable`: answers that are
        in no mean. JudgeError where no answer can be read."""
        asked, folder = self.asked(), subject.kept_in / "dpg"
        judge = read_judge(self.judge, f"{self.option}.judge", subject.device)
        check_first(folder, judge, subject.ranks)
        pictures = pictures_of(subject, "dpg", [each.text for each in asked], self.sampling, self.pictures_per_prompt)
        of_pictures = asked * self.pictures_per_prompt
        answers = answered(folder, partial(questions, of_pictures, pictures), judge, subject.progress, subject.ranks)
        found, rest = [], iter(answers)
        for each in of_pictures:
            said = [next(rest)["answer"] for _ in each.propositions]
            found.append({one.number: yes(text) for one, text in zip(each.propositions, said, strict=True)})
        scores = [score(each, truths) for each, truths in zip(of_pictures, found, strict=True)]
        if all(one is None for one in scores):
            raise JudgeError(f"{judge.name} answers with neither yes nor no, such as {answers[0]['text'][:80]!r}")
        lines = [
            {"filename": name, "item": each.name, "score": one, "answers": {str(n): v for n, v in truths.items()}}
            for name, each, one, truths in zip(pictures.names, of_pictures, scores, found, strict=True)
        ]
        subject.write_lines(folder / "results.jsonl", lines)
        counted = {"pictures": float(len(scores)), **unanswered(answers, YES_OR_NO)}
        numbers = {"overall": overall(scores, len(asked)), **by_category(of_pictures, found), **counted}
        chosen = some(len(asked), SHOWN)
        told = [in_words(of_pictures[number], scores[number], found[number]) for number in chosen]
        shown = sheet([[picture] for picture in pictures.decoded(chosen)], told)
        return {f"dpg/{name}": value for name, value in numbers.items()}, shown

    def asked(self) -> list[Asked]:
        return read_dpg(Path(self.prompts_folder), Path(self.questions_file), self.option)[: self.prompts]


def questions(of_pictures: Sequence[Asked], pictures: PictureSet) -> Iterator[Question]:
    for name, asked, picture in zip(pictures.names, of_pictures, pictures.all(), strict=True):
        for each in asked.propositions:
            yield Question((picture,), WORDS.format(question=each.words), YES_OR_NO, name)


def yes(answer: str) -> bool | None:
    return {"yes": True, "no": False}.get(answer)


def held(asked: Asked, truths: Mapping[int, bool | None]) -> dict[int, bool | None]:
    """What of a picture's answers counts: a question fails with one that it depends on. None: not answered."""
    counted: dict[int, bool | None] = {}
    for each in asked.propositions:  # parents come first
        fails = any(counted[parent] is False for parent in each.parents)
        counted[each.number] = False if fails else truths[each.number]
    return counted


def score(asked: Asked, truths: Mapping[int, bool | None]) -> float | None:
    """The share of a picture's questions that hold, of those that are answered; None where none is."""
    told = [one for one in held(asked, truths).values() if one is not None]
    return float(np.mean(told)) if told else None


def overall(scores: Sequence[float | None], prompts: int) -> float:
    """100 times the mean over prompts of the mean over a prompt's pictures; picture i is of prompt i % `prompts`."""
    of_prompts = [[one for one in scores[number::prompts] if one is not None] for number in range(prompts)]
    return 100 * float(np.mean([np.mean(mine) for mine in of_prompts if mine]))


def by_category(of_pictures: Sequence[Asked], found: Sequence[Mapping[int, bool | None]]) -> dict[str, float]:
    """100 times the share of yes in each broad category, by its answers alone."""
    told: dict[str, list[bool]] = {}
    for asked, truths in zip(of_pictures, found, strict=True):
        for each in asked.propositions:
            if (truth := truths[each.number]) is not None:
                told.setdefault(broad(each.category), []).append(truth)
    return {category: 100 * float(np.mean(of_it)) for category, of_it in sorted(told.items())}


def in_words(asked: Asked, scored: float | None, truths: Mapping[int, bool | None]) -> str:
    """The beginning of a prompt, its picture's score, and what fails."""
    fails = [each.words for each in asked.propositions if held(asked, truths)[each.number] is False]
    told = "no answer" if scored is None else f"{100 * scored:.0f}"
    return f"{asked.text[:SHOWN_CHARACTERS]}... {told}. {' '.join(f'No: {words}' for words in fails[:4])}"
