"""The metric: pictures of GenEval's prompts, judged one by one, and a sheet of what was seen in some of them."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from microdit.evaluation.geneval.folders import FolderSubject
from microdit.evaluation.geneval.networks import Judge, Picture, read_judge
from microdit.evaluation.geneval.prompts import TAGS, Sample, of_each_tag, read_samples, recipe
from microdit.evaluation.geneval.verdicts import Verdict, boxes_of, judged, scores
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import Count, Sampling, Subject
from microdit.grid import prompt_grid
from microdit.kinds import Copied, Limits, Weights
from microdit.pipeline import LatentDiffusion

SHOWN_PER_TAG, SHOWN_PX, TEXT_PX = 6, 256, 11
ASKED_FOR, BESIDE = "#e6194b", "#808080"  # the frames of objects of the prompt's classes, and of others


@dataclass(frozen=True)
class GenEval(Metric):
    """GenEval: the share of pictures that show the objects, numbers, colours and places their prompts ask for.

    `prompts_file`: an evaluation_metadata.jsonl; None: the 553 prompts of the recipe, of each tag the first
    `prompts_per_tag` (None: all). `detector_weights`, `clip_weights`: of a Mask2Former of transformers and a CLIP of
    open_clip, a folder or a name on the Hugging Face hub.
    """

    option: ClassVar[str] = "metrics.geneval"
    prompts_file: Copied | None
    prompts_per_tag: Count | None
    pictures_per_prompt: Annotated[int, Limits(1, 1000)]
    detector_weights: Weights
    clip_weights: Weights
    sampling: Sampling

    def ask(self, pipeline: LatentDiffusion) -> None:
        super().ask(pipeline)
        self.samples()
        self.judge(torch.device("cpu"))

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`geneval/TAG` and `geneval/overall`, shares in 0..1, and `geneval/pictures`, how many they are of."""
        judge = self.judge(subject.device)  # first: what is missing should not be found out after hours of drawing
        asked, decoded = self.pictures(subject)
        pictures = decoded(range(len(asked)))
        each = ((name, sample, picture) for (name, sample), picture in zip(asked, pictures, strict=True))
        verdicts = judged(subject.kept_in / "geneval", each, len(asked), judge, subject.progress, subject.ranks)
        numbers = {**scores(verdicts), "pictures": float(len(verdicts))}
        shown = sheet(verdicts, [sample for _, sample in asked], decoded)
        return {f"geneval/{name}": value for name, value in numbers.items()}, shown

    def pictures(
        self, subject: Subject
    ) -> tuple[list[tuple[str, Sample]], Callable[[Collection[int]], Iterator[Picture]]]:
        """The name and prompt of each picture, and what decodes some of them by their numbers."""
        if isinstance(subject, FolderSubject):
            names = [path.relative_to(subject.folder).as_posix() for path, _ in subject.prompted]
            return list(zip(names, [sample for _, sample in subject.prompted], strict=True)), subject.decoded
        # All prompts once, then all again: the pictures of fewer a prompt are the first of these.
        samples = self.samples() * self.pictures_per_prompt
        drawn = subject.pictures("geneval", [sample["prompt"] for sample in samples], self.sampling)
        names = [f"{drawn.tar.name}/{number:06d}.png" for number in range(len(samples))]
        return list(zip(names, samples, strict=True)), drawn.decoded

    def samples(self) -> list[Sample]:
        all_of_them = recipe() if self.prompts_file is None else read_samples(Path(self.prompts_file))
        return of_each_tag(all_of_them, self.prompts_per_tag)

    def judge(self, device: torch.device) -> Judge:
        return read_judge(self.detector_weights, self.clip_weights, self.option, device)


def sheet(
    verdicts: Sequence[Verdict], samples: Sequence[Sample], decoded: Callable[[Collection[int]], Iterator[Picture]]
) -> Image.Image:
    """Some pictures of each tag with what was seen in them, and under each its prompt, the verdict, and why."""
    of_tags: list[list[int]] = []
    for tag in TAGS:
        mine = [number for number, sample in enumerate(samples) if sample["tag"] == tag]
        of_tags.append(mine[:: max(1, len(mine) // SHOWN_PER_TAG)][:SHOWN_PER_TAG])
    chosen = [number for mine in of_tags for number in mine]
    drawn = {
        number: annotated(picture, verdicts[number], {asked["class"] for asked in samples[number]["include"]})
        for number, picture in zip(sorted(chosen), decoded(chosen), strict=True)
    }
    pixels = torch.from_numpy(np.stack([drawn[number] for number in chosen])).permute(0, 3, 1, 2).float() / 255
    return prompt_grid(pixels, [in_words(verdicts[number]) for number in chosen], columns=max(map(len, of_tags)))


def in_words(verdict: Verdict) -> str:
    found = "right" if verdict["correct"] else f"wrong: {'; '.join(verdict['reason'].splitlines())}"
    return f"{verdict['prompt'].removeprefix('a photo of ')}. {found}"


def annotated(picture: Picture, verdict: Verdict, asked: Collection[str]) -> np.ndarray:
    """A picture on a white square of SHOWN_PX, each object that counted in a frame with its colour, name and score."""
    factor = SHOWN_PX / max(picture.shape[:2])
    height, width = (max(1, round(side * factor)) for side in picture.shape[:2])
    shown = Image.new("RGB", (SHOWN_PX, SHOWN_PX), "white")
    shown.paste(Image.fromarray(picture).resize((width, height)))
    draw, font = ImageDraw.Draw(shown), ImageFont.load_default(TEXT_PX)
    for name, objects in reversed(boxes_of(verdict).items()):  # those asked for, and the surest, on top
        colours = verdict["colours"].get(name, [])
        for number, (*box, score) in reversed(list(enumerate(objects))):
            left, top, right, bottom = (side * factor for side in box)
            frame = ASKED_FOR if name in asked else BESIDE
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=frame, width=2)
            words = " ".join([*colours[number : number + 1], name, f"{score:.2f}"])
            last = SHOWN_PX - draw.textlength(words, font) - 2, SHOWN_PX - TEXT_PX - 3  # where it still fits
            place = max(0, min(left + 2, last[0])), max(0, min(top + 1, last[1]))
            draw.rectangle(draw.textbbox(place, words, font), fill="white")
            draw.text(place, words, fill=frame, font=font)
    return np.asarray(shown)
