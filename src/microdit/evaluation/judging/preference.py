"""Which of two pictures of a prompt is better, as a judge has it who sees them in both orders, several times."""

import csv
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

from PIL import Image
from scipy.stats import binomtest

from microdit.evaluation.journal import as_lines
from microdit.evaluation.judging.answers import answered, check_first, unanswered
from microdit.evaluation.judging.judges import JudgeSettings, check_judge, read_judge
from microdit.evaluation.judging.prompts import Prompt, read_prompts
from microdit.evaluation.judging.questions import FIRST_OF_TWO, Answer, JudgeError, Question
from microdit.evaluation.judging.sets import PictureSet, name_of, pictures_in, pictures_of, sheet, some
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import Count, Sampling, Subject
from microdit.files import replacing, write_whole
from microdit.kinds import Copied, Limits, Positive, SettingsError
from microdit.pipeline import LatentDiffusion

WORDS = (
    'Two pictures were made for the same prompt: "{prompt}". Which of them is better? Consider first how well each '
    "shows all that the prompt says, then how natural and well made it looks. Their order means nothing. Answer with "
    "one word alone: first, second or tie."
)
WIN, TIE, LOSS, UNANSWERED = "win", "tie", "loss", "unanswered"
VERDICTS = (WIN, TIE, LOSS)
CONFIDENCE = 0.95
SHOWN = 12


class Share(NamedTuple):
    """A share of prompts with its binomial interval (Wilson's, 95 %)."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Preference(Metric):
    """Pictures of the prompts in `prompts_file` (PartiPrompts.tsv, or a prompt a line; of each category the first
    `prompts_per_category`, None: all) beside those in the folder `against`: another run's evaluation/, or pictures made
    elsewhere. Each pair is shown in both orders, `votes` times, answers drawn at `temperature`."""

    option: ClassVar[str] = "metrics.preference"
    prompts_file: Copied
    prompts_per_category: Count | None
    against: Copied | None
    votes: Annotated[int, Limits(1, 100)]
    temperature: Positive
    judge: JudgeSettings
    sampling: Sampling

    def ask(self, pipeline: LatentDiffusion) -> None:
        super().ask(pipeline)
        self.theirs(self.prompts())
        check_judge(self.judge, f"{self.option}.judge")

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`preference/wins`, `ties`, `losses`: shares of the prompts that were judged, `wins_low`, `wins_high`,
        `losses_low`, `losses_high`: 95 % intervals; `preference/CATEGORY/wins`, `ties`, `losses`;
        `preference/prompts`: how many were judged, `unanswered`: how many were not, `refused` and `unreadable`:
        answers; `first`: how often the first of two was chosen, 0.5 for a judge who does not mind the order.

        JudgeError where no pair was judged.
        """
        prompts, folder = self.prompts(), subject.kept_in / "preference"
        theirs = self.theirs(prompts)
        judge = read_judge(self.judge, f"{self.option}.judge", subject.device)
        check_first(folder, judge, subject.ranks)
        texts = [prompt.text for prompt in prompts]
        ours = pictures_of(subject, name_of(self.prompts_file), texts, self.sampling)
        asking = partial(questions, texts, ours, theirs, self.votes, self.temperature)
        answers = answered(folder, asking, judge, subject.progress, subject.ranks)
        of_prompts = [answers[start : start + 2 * self.votes] for start in range(0, len(answers), 2 * self.votes)]
        verdicts = [verdict_of(said[: self.votes], said[self.votes :]) for said in of_prompts]
        if subject.ranks.leads:
            write_results(folder, prompts, verdicts, of_prompts, ours, theirs)
        if all(verdict == UNANSWERED for verdict in verdicts):
            raise JudgeError(f"{judge.name} chooses neither picture, and no tie, such as {answers[0]['text'][:80]!r}")
        chosen = some(len(prompts), SHOWN)
        pairs = zip(ours.decoded(chosen), theirs.decoded(chosen), strict=True)
        told = [f"{texts[number]}. {verdicts[number]} (ours is on the left)" for number in chosen]
        return numbers_of(prompts, verdicts, answers), sheet(list(pairs), told)

    def prompts(self) -> list[Prompt]:
        return read_prompts(Path(self.prompts_file), f"{self.option}.prompts_file", self.prompts_per_category)

    def theirs(self, prompts: Sequence[Prompt]) -> PictureSet:
        if self.against is None:
            raise SettingsError(
                f"{self.option}.against=FOLDER is needed: the pictures to compare with, such as ANOTHER_RUN/evaluation"
            )
        texts, seed = [prompt.text for prompt in prompts], self.sampling["seed"]
        return pictures_in(Path(self.against), f"{self.option}.against", name_of(self.prompts_file), texts, seed)


def questions(
    prompts: Sequence[str], ours: PictureSet, theirs: PictureSet, votes: int, temperature: float
) -> Iterator[Question]:
    """For each prompt: ours first, as often as there are votes, then theirs first."""
    pairs = zip(prompts, ours.names, ours.all(), theirs.names, theirs.all(), strict=True)
    for prompt, our_name, our_picture, their_name, their_picture in pairs:
        words = WORDS.format(prompt=prompt)
        for swapped, vote in itertools.product((False, True), range(votes)):
            pictures = (their_picture, our_picture) if swapped else (our_picture, their_picture)
            about = f"their {their_name}, our {our_name}" if swapped else f"our {our_name}, their {their_name}"
            yield Question(pictures, words, FIRST_OF_TWO, about, temperature, vote)


def verdict_of(ours_first: Sequence[Answer], theirs_first: Sequence[Answer]) -> str:
    """What most votes say of each order, if both say the same; else a tie. UNANSWERED where nothing that can be read
    was said of an order: that is nobody's loss."""
    first = most([answer["answer"] for answer in ours_first], WIN, LOSS)
    second = most([answer["answer"] for answer in theirs_first], LOSS, WIN)
    if UNANSWERED in (first, second):
        return UNANSWERED
    return first if first == second else TIE


def most(answers: Sequence[str], if_first: str, if_second: str) -> str:
    """The verdict that has more votes than either other one, else a tie."""
    meant = {"first": if_first, "second": if_second, "tie": TIE}
    votes = Counter(meant[answer] for answer in answers if answer in meant)
    if not votes:
        return UNANSWERED
    (verdict, count), *others = votes.most_common()
    return TIE if others and others[0][1] == count else verdict


def numbers_of(prompts: Sequence[Prompt], verdicts: Sequence[str], answers: Sequence[Answer]) -> dict[str, float]:
    """Wins, ties and losses of all prompts and of each category that was judged, and how they came about."""
    found: dict[str, float] = {}
    for category in ("", *dict.fromkeys(prompt.category for prompt in prompts if prompt.category)):
        mine = [v for v, prompt in zip(verdicts, prompts, strict=True) if category in ("", prompt.category)]
        for name, share in shares(mine).items():
            found["/".join(filter(None, ("preference", category, name)))] = share.share
            if not category and name != "ties":
                found |= {f"preference/{name}_low": share.low, f"preference/{name}_high": share.high}
    said = Counter(answer["answer"] for answer in answers)
    judged = sum(verdict != UNANSWERED for verdict in verdicts)
    counted = {"prompts": judged, "unanswered": len(verdicts) - judged, **unanswered(answers, FIRST_OF_TWO)}
    found |= {f"preference/{name}": float(value) for name, value in counted.items()}
    if decided := said["first"] + said["second"]:
        found["preference/first"] = said["first"] / decided
    return found


def shares(verdicts: Sequence[str]) -> dict[str, Share]:
    """Of the pairs that were judged, how many are won, tied and lost; empty where none was judged."""
    judged = [verdict for verdict in verdicts if verdict != UNANSWERED]
    if not judged:
        return {}
    found = {}
    for name, verdict in zip(("wins", "ties", "losses"), VERDICTS, strict=True):
        counted = binomtest(judged.count(verdict), len(judged))
        interval = counted.proportion_ci(CONFIDENCE, method="wilson")
        found[name] = Share(float(counted.statistic), float(interval.low), float(interval.high))
    return found


def write_results(
    folder: Path,
    prompts: Sequence[Prompt],
    verdicts: Sequence[str],
    answers: Sequence[Sequence[Answer]],
    ours: PictureSet,
    theirs: PictureSet,
) -> None:
    """`results.jsonl`, a line a prompt, and `categories.csv`: counts, shares and intervals of each category and all."""
    votes = len(answers[0]) // 2
    write_whole(
        folder / "results.jsonl",
        as_lines(
            {
                **{
                    "prompt": prompt.text,
                    "category": prompt.category,
                    "verdict": verdict,
                    "ours": our,
                    "theirs": their,
                },
                "ours_first": [answer["answer"] for answer in said[:votes]],
                "theirs_first": [answer["answer"] for answer in said[votes:]],
            }
            for prompt, verdict, said, our, their in zip(
                prompts, verdicts, answers, ours.names, theirs.names, strict=True
            )
        ),
    )
    categories = [*dict.fromkeys(prompt.category for prompt in prompts if prompt.category), "all"]
    with replacing(folder / "categories.csv", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        ends = [f"{name}{end}" for name in ("wins", "ties", "losses") for end in ("", "_low", "_high")]
        table.writerow(["category", "prompts", *VERDICTS, UNANSWERED, *ends])
        for category in categories:
            mine = [v for v, prompt in zip(verdicts, prompts, strict=True) if category in ("all", prompt.category)]
            counts = [mine.count(verdict) for verdict in (*VERDICTS, UNANSWERED)]
            table.writerow(
                [category, len(mine), *counts, *(value for share in shares(mine).values() for value in share)]
            )
