"""VQAScore (Lin et al. 2024): how likely a judge says yes when it is asked whether a picture shows its prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from PIL import Image

from microdit.evaluation.judging.answers import answered, check_first, unanswered
from microdit.evaluation.judging.judges import JudgeSettings, check_judge, read_judge
from microdit.evaluation.judging.prompts import Prompt, mean, of_categories, read_prompts
from microdit.evaluation.judging.questions import REFUSED, YES_OR_NO, Answer, JudgeError, Question
from microdit.evaluation.judging.sets import PictureSet, name_of, pictures_of, sheet, some
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import Count, Sampling, Subject
from microdit.kinds import Copied
from microdit.pipeline import LatentDiffusion

WORDS = 'Does this figure show "{prompt}"? Please answer yes or no.'
SHOWN = 12


@dataclass(frozen=True)
class VqaScore(Metric):
    """VQAScore of a picture of each prompt in `prompts_file` (PartiPrompts.tsv, or a prompt a line), of each category
    the first `prompts_per_category` (None: all)."""

    option: ClassVar[str] = "metrics.vqa_score"
    prompts_file: Copied
    prompts_per_category: Count | None
    judge: JudgeSettings
    sampling: Sampling

    def ask(self, pipeline: LatentDiffusion) -> None:
        super().ask(pipeline)
        self.prompts()
        check_judge(self.judge, f"{self.option}.judge")

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`vqa_score`, the mean probability of yes in 0..1, and of each category `vqa_score/CATEGORY`;
        `vqa_score/pictures`: of how many; `refused` and `unreadable`: answers that are in no mean.

        JudgeError where the judge tells no probabilities, or answers nothing that can be read.
        """
        prompts, folder = self.prompts(), subject.kept_in / "vqa_score"
        judge = read_judge(self.judge, f"{self.option}.judge", subject.device)
        check_first(folder, judge, subject.ranks)
        texts = [prompt.text for prompt in prompts]
        pictures = pictures_of(subject, name_of(self.prompts_file), texts, self.sampling)
        answers = answered(folder, partial(questions, texts, pictures), judge, subject.progress, subject.ranks)
        yes = [likelihood(answer) for answer in answers]
        if all(each is None for each in yes):
            said = answers[0]["text"][:80]
            raise JudgeError(
                f"{judge.name} tells no probabilities of its answers, such as {said!r}: VQAScore needs a judge that "
                "does (logprobs of a server; models of transformers always do) and that does not think aloud first"
            )
        lines = [
            {
                "filename": name,
                "prompt": prompt.text,
                "category": prompt.category,
                "yes": one,
                "answer": answer["answer"],
            }
            for name, prompt, one, answer in zip(pictures.names, prompts, yes, answers, strict=True)
        ]
        subject.write_lines(folder / "results.jsonl", lines)
        numbers = {"vqa_score": mean(yes), **of_categories("vqa_score", prompts, yes)}
        counted = {"pictures": sum(one is not None for one in yes), **unread(answers, yes)}
        chosen = some(len(texts), SHOWN)
        told = [f"{texts[number]}. {'no answer' if yes[number] is None else f'{yes[number]:.2f}'}" for number in chosen]
        shown = sheet([[picture] for picture in pictures.decoded(chosen)], told)
        return {**numbers, **{f"vqa_score/{name}": float(value) for name, value in counted.items()}}, shown

    def prompts(self) -> list[Prompt]:
        return read_prompts(Path(self.prompts_file), f"{self.option}.prompts_file", self.prompts_per_category)


def questions(prompts: Sequence[str], pictures: PictureSet) -> Iterator[Question]:
    for name, prompt, picture in zip(pictures.names, prompts, pictures.all(), strict=True):
        yield Question((picture,), WORDS.format(prompt=prompt), YES_OR_NO, name, probable=True)


def likelihood(answer: Answer) -> float | None:
    """The probability of yes; None where the answer is none: refused, or without probabilities."""
    if answer["answer"] == REFUSED or answer["probabilities"] is None:
        return None
    return answer["probabilities"].get("yes")


def unread(answers: Sequence[Answer], yes: Sequence[float | None]) -> dict[str, float]:
    """How many answers are refusals, and how many could otherwise not be read."""
    refused = unanswered(answers, YES_OR_NO)["refused"]
    return {"refused": refused, "unreadable": sum(one is None for one in yes) - refused}
