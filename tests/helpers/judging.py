"""Judges of pictures that are no networks, and a process of theirs that is killed on the way."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np

from microdit.evaluation.geneval.networks import Judge
from microdit.evaluation.geneval.rules import Detection
from microdit.evaluation.geneval.verdicts import judged


def bright_dogs(asked: Callable[[int], None], name: str = "bright dogs") -> Judge:
    """A judge who sees a red dog in every bright picture, and tells how bright each was that it is asked for."""

    def seen_in(picture: np.ndarray) -> list[Detection]:
        asked(int(picture.mean()))
        return [Detection("dog", 0.95, (1.0, 2.0, 6.0, 7.0))] if picture.mean() >= 128 else []

    return Judge(seen_in, lambda picture: lambda objects, name: ["red" for _ in objects], name)


def pictures_of_dogs(count: int, tag: str = "single_object") -> list:
    """Pictures, each brighter than the one before, with what they should show: a dog."""
    sample = {"tag": tag, "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}
    shades = np.linspace(0, 255, count).astype(np.uint8)
    return [(f"{number}.png", sample, np.full((8, 8, 3), shade)) for number, shade in enumerate(shades)]


def judge_and_be_killed(folder: Path, requests: Path, count: int, at: int | None, when: str) -> None:
    """Judges; at the `at`-th picture it is killed, `when` it is "asked" for it or it was "kept"; None: it ends."""

    def asked(shade: int) -> None:
        with requests.open("a") as file:
            file.write(f"{shade}\n")
        if when == "asked" and len(requests.read_text().splitlines()) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def progress(done: int, total: int, doing: str) -> None:
        if when == "kept" and done == at:
            os.kill(os.getpid(), signal.SIGKILL)

    judged(folder, pictures_of_dogs(count), count, bright_dogs(asked), progress)
