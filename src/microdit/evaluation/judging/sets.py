"""Sets of pictures of prompts, drawn now, kept, or made elsewhere, as those who judge them take them; and sheets."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from microdit.evaluation.geneval.folders import FolderSubject, decoded_files, is_folder_of_prompts
from microdit.evaluation.judging.questions import Picture
from microdit.evaluation.pictures import PicturesError
from microdit.evaluation.subject import KeptSubject, Subject
from microdit.grid import prompt_grid

SHOWN_PX = 256


@dataclass(frozen=True)
class PictureSet:
    """Pictures by their numbers: what they are called, and what decodes some of them in order."""

    names: list[str]
    decoded: Callable[[Collection[int]], Iterator[Picture]]

    def all(self) -> Iterator[Picture]:
        return self.decoded(range(len(self.names)))


def pictures_of(subject: Subject, name: str, prompts: Sequence[str], sampling: Any, per_prompt: int = 1) -> PictureSet:
    """So many pictures a prompt: the first of all prompts, then all again. Raises PicturesError as `subject` does."""
    if isinstance(subject, FolderSubject):
        of_each = subject.of_prompts(prompts, per_prompt)
        paths = [of_each[prompt][number] for number in range(per_prompt) for prompt in range(len(prompts))]
        names = [path.relative_to(subject.folder).as_posix() for path in paths]
        return PictureSet(names, lambda chosen: decoded_files([paths[number] for number in sorted(chosen)]))
    drawn = subject.pictures(name, [*prompts] * per_prompt, sampling)
    names = [f"{drawn.tar.name}/{number:06d}.png" for number in range(drawn.count)]
    return PictureSet(names, drawn.decoded)


def pictures_in(folder: Path, option: str, name: str, prompts: Sequence[str], seed: int) -> PictureSet:
    """The same of a folder: another run's kept pictures, or pictures made elsewhere. PicturesError where it holds none
    of these prompts; `option`: where it is set."""
    if not folder.is_dir():
        raise PicturesError(
            f"{option}={folder} is no folder. It is one of kept pictures, such as ANOTHER_RUN/evaluation, which "
            "metrics=vqa_score and others make with the same prompts, or of pictures made elsewhere "
            "(00000/metadata.jsonl beside 00000/samples/0000.png, ...)"
        )
    other = FolderSubject(folder, folder) if is_folder_of_prompts(folder) else KeptSubject(folder)
    return pictures_of(other, name, prompts, {"seed": seed})


def name_of(prompts_file: str) -> str:
    """What pictures of the prompts in a file are called, whichever metric asks for them."""
    return re.sub(r"[^\w.-]+", "_", Path(prompts_file).stem).strip("._") or "prompts"


def some(count: int, shown: int) -> list[int]:
    """So many numbers of 0..count - 1, evenly."""
    return [number * count // min(count, shown) for number in range(min(count, shown))]


def sheet(rows: Sequence[Sequence[Picture]], words: Sequence[str]) -> Image.Image:
    """Pictures, or several side by side, each on a white square of SHOWN_PX, with words under them."""
    cells = [np.concatenate([square(picture) for picture in pictures], axis=1) for pictures in rows]
    return prompt_grid(torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2).float() / 255, words)


def square(picture: Picture) -> Picture:
    shown, reduced = Image.new("RGB", (SHOWN_PX, SHOWN_PX), "white"), Image.fromarray(picture)
    factor = SHOWN_PX / max(reduced.size)
    shown.paste(reduced.resize([max(1, round(side * factor)) for side in reduced.size]))
    return np.asarray(shown)
