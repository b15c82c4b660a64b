"""Pictures made elsewhere, in GenEval's layout: FOLDER/00000/metadata.jsonl, FOLDER/00000/samples/0000.png, ..."""

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from microdit.data.sources.captioned import content_of
from microdit.data.sources.images import BrokenImageError, FilteredImageError, rgb_image
from microdit.evaluation.geneval.networks import Picture
from microdit.evaluation.geneval.prompts import Sample, read_samples
from microdit.evaluation.pictures import LARGEST_SIDE_PX, Pictures, PicturesError
from microdit.evaluation.sharing import ALONE, Ranks
from microdit.evaluation.subject import KeptSubject
from microdit.files import read_json

METADATA, SAMPLES = "metadata.jsonl", "samples"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def is_folder_of_prompts(folder: Path) -> bool:
    """Whether a folder has a folder a prompt, with what the prompt asks for beside its pictures."""
    return any(folder.glob(f"*/{METADATA}"))


class FolderSubject(KeptSubject):
    """Such a folder, judged as it is: each picture by its own prompt. What is found out is kept in `kept_in`."""

    def __init__(self, folder: Path, kept_in: Path, device: str = "cpu", ranks: Ranks = ALONE, refresh: bool = False):
        super().__init__(folder, device, None, ranks, refresh)
        self._kept_in = kept_in

    @property
    def kept_in(self) -> Path:
        return self._kept_in

    def apart(self, name: str) -> "FolderSubject":
        other = copy.copy(self)
        other._kept_in = self.kept_in / name
        return other

    def pictures(self, name: str, prompts: Sequence[str], sampling: Mapping[str, Any]) -> Pictures:
        raise PicturesError(
            f"{self.folder} holds pictures made elsewhere, of prompts of their own, and this metric asks others: give "
            "metrics=geneval, or one that a judge answers"
        )

    @cached_property
    def folders(self) -> list[tuple[Path, list[Path]]]:
        """The file that says what each folder's pictures should show, and these pictures, in order of their names.
        PicturesError where a prompt has no picture, or a folder no prompt."""
        found = []
        for folder in sorted(each for each in self.folder.iterdir() if (each / SAMPLES).is_dir()):
            if not (folder / METADATA).is_file():
                raise PicturesError(f"{folder} has no {METADATA}, so it is not known what its pictures should show")
            # As in GenEval's script: pictures are called by numbers, anything else beside them is not judged.
            paths = [path for path in (folder / SAMPLES).iterdir() if path.suffix.lower() in SUFFIXES]
            pictures = sorted(path for path in paths if path.stem.isdigit())
            if not pictures:
                raise PicturesError(f"{folder / SAMPLES} holds no picture that is called by a number, such as 0000.png")
            found.append((folder / METADATA, pictures))
        if lonely := [
            path.parent for path in self.folder.glob(f"*/{METADATA}") if not (path.parent / SAMPLES).is_dir()
        ]:
            raise PicturesError(f"{min(lonely)} has a {METADATA} and no folder {SAMPLES} with its pictures")
        return found

    @cached_property
    def prompted(self) -> list[tuple[Path, Sample]]:
        """Every picture and its prompt of GenEval, in order of their names. PicturesError as `folders`;
        DamagedFileError for a prompt that is none."""
        found = []
        for metadata, pictures in self.folders:
            samples = read_samples(metadata)
            if len(samples) > 1:
                raise PicturesError(f"{metadata} holds {len(samples)} prompts; it is one, of all its pictures")
            found += [(path, samples[0]) for path in pictures]
        return found

    def of_prompts(self, prompts: Sequence[str], count: int) -> list[list[Path]]:
        """The first `count` pictures of each of `prompts`, whichever folder they are in. PicturesError as `folders`,
        and where there are fewer; DamagedFileError where a file names no prompt."""
        there: dict[str, list[Path]] = {}
        for metadata, pictures in self.folders:
            told = read_json(metadata, 'it holds one line with its prompt, {"prompt": "..."}')
            there.setdefault(str(told.get("prompt", "")).strip(), []).extend(pictures)
        for prompt in prompts:
            if len(there.get(prompt, ())) < count:
                raise PicturesError(
                    f"{self.folder} holds {len(there.get(prompt, ()))} pictures, not {count}, of the prompt {prompt!r}"
                )
        return [there[prompt][:count] for prompt in prompts]

    def decoded(self, chosen: Collection[int]) -> Iterator[Picture]:
        """The `chosen` pictures, by their numbers in order. PicturesError for one that cannot be read."""
        return decoded_files([self.prompted[number][0] for number in sorted(chosen)])


def decoded_files(paths: Sequence[Path]) -> Iterator[Picture]:
    """Pictures in files. PicturesError for one that cannot be read."""
    for path in paths:
        try:
            picture = rgb_image(content_of(path), max_pixels=LARGEST_SIDE_PX**2)
            if max(picture.size) > LARGEST_SIDE_PX:
                raise FilteredImageError(f"a side of more than {LARGEST_SIDE_PX} px")
            yield np.asarray(picture)
        except (BrokenImageError, FilteredImageError) as error:
            raise PicturesError(f"{path}: {error}. Remove it or make it again: all of a set must be judged") from error
