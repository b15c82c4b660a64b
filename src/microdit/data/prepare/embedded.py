"""The embedded dataset `shapes`, made on first use by the road that a user's own pictures take."""

import multiprocessing
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Annotated, Literal

from microdit.data.prepare.convert import prepare
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import Recipe
from microdit.data.prepare.report import Summary
from microdit.data.shapes import SKILLS
from microdit.data.sources.captioned import CaptionedImage, Source
from microdit.data.sources.embedded_shapes import ShapesSource
from microdit.data.sources.tars import TarSource, write_pictures
from microdit.files import alone_in, claim, folder_within
from microdit.kinds import Limits, SettingsError, check_names
from microdit.progress import Report, silent

DOMAINS = ("real", "synthetic")
COUNTS = {"train": 10_000, "validation": 512}


class DrawnShards(TarSource):
    """Image shards that were drawn: what they are does not depend on where they lie."""

    def __init__(self, drawing: ShapesSource, folder: Path) -> None:
        self.drawing = drawing
        super().__init__([str(folder / f"{number:05d}.tar") for number in range(len(drawing.shards()))])

    @property
    def identity(self) -> Mapping[str, object]:
        return self.drawing.identity

    def shards(self) -> list[str]:
        return [Path(tar).name for tar in self.tars()]

    def state(self, shard: int) -> str:
        return ""


class ShapesNotDrawnError(RuntimeError):
    """A process that drew shapes ended early; the message says how."""


@dataclass(frozen=True)
class EmbeddedShapes:
    """Which of the embedded shapes to make. `counts`: scenes of each split. `skill_shares`: how many of the training
    scenes ask for each of GenEval's skills, in any unit; None: as suits minutes of training. `name`: of the folders,
    NAME_DOMAIN; one for each choice of shares. `processes`: that draw; None: one a core."""

    domains: Sequence[Literal["real", "synthetic"]] = DOMAINS  # these become names of folders, as splits do
    counts: Mapping[str, Annotated[int, Limits(1, 10**8)]] = field(default_factory=lambda: dict(COUNTS))
    skill_shares: Mapping[str, Annotated[float, Limits(0, 1000)]] | None = None
    name: str = "shapes"
    processes: int | None = None

    def __post_init__(self) -> None:
        cores = os.cpu_count() or 1
        check_names(self.counts, COUNTS, "data_mix.embedded.counts")
        if self.skill_shares is not None:
            check_names(self.skill_shares, SKILLS, "data_mix.embedded.skill_shares")
            if not sum(self.skill_shares.values()) > 0:
                raise SettingsError("data_mix.embedded.skill_shares: none is above 0; name at least one skill to draw")
        if not re.fullmatch("[a-z0-9_]{1,40}", self.name):
            raise SettingsError(f"data_mix.embedded.name={self.name}: up to 40 small letters, digits and underscores")
        if self.processes is not None and not 1 <= self.processes <= 4 * cores:
            raise SettingsError(f"data_mix.embedded.processes={self.processes}: from 1 to {4 * cores} on {cores} cores")


def ensure_shapes(
    root: Path, wanted: EmbeddedShapes, encoders: Encoders, recipe: Recipe, progress: Report = silent
) -> list[Summary]:
    """Make what is missing of ROOT/NAME_DOMAIN/SPLIT, drawn at the largest resolution of `recipe`: image shards,
    latent shards, index. Costs nothing when all is there; may be killed at any time, and called by several processes
    at once.

    PlanChangedError where a folder holds the shapes of other settings, SettingsError where a link leads out of ROOT.
    """
    root.mkdir(parents=True, exist_ok=True)
    side_px, summaries = max(recipe.resolutions_px), []
    with alone_in(root):
        for domain in wanted.domains:
            for split, count in wanted.counts.items():
                shares = wanted.skill_shares if split == "train" else None
                drawing = ShapesSource(domain, split, count, side_px, skill_shares=shares)
                folder, title = root / f"{wanted.name}_{domain}" / split, f"{wanted.name}_{domain} {split}"
                images = folder_within(root, folder / f"images-{side_px}px")
                draw(
                    drawing,
                    images,
                    wanted.processes or len(os.sched_getaffinity(0)),
                    partial(progress_of, progress, f"{title}: draw"),
                )
                encoding = partial(progress_of, progress, f"{title}: encode")
                summaries.append(prepare(DrawnShards(drawing, images), folder, encoders, recipe, "1/1", encoding, root))
    return summaries


def progress_of(progress: Report, title: str, done: float, total: float, doing: str) -> None:
    """Report one part of the work under its own title."""
    progress(done, total, f"{title} {doing}")


def draw(source: Source, folder: Path, processes: int, progress: Report) -> None:
    """Write the image shards of a source that are missing, in several processes."""
    missing = [number for number in range(len(source.shards())) if not (folder / f"{number:05d}.tar").exists()]
    if not missing:
        return
    context = multiprocessing.get_context("fork")
    drawn = context.Value("q", 0)
    total = len(missing)
    # Each process has its own list and ends with it: nothing waits for a parent that may have been killed.
    workers = [
        context.Process(target=draw_shards, args=(source, missing[first::processes], folder, drawn), daemon=True)
        for first in range(min(processes, total))
    ]
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers):
        next(worker for worker in workers if worker.is_alive()).join(0.2)
        progress(drawn.value, total, f"{drawn.value} of {total} shards")
    failed = [worker.exitcode for worker in workers if worker.exitcode]
    if failed:
        raise ShapesNotDrawnError(f"drawing into {folder} ended early (exit codes {failed}); run the command again")


def draw_shards(source: Source, numbers: Sequence[int], folder: Path, drawn: Synchronized) -> None:
    """Write image shards by number."""
    for number in numbers:
        write_image_shard(source, number, folder / f"{number:05d}.tar")
        with drawn.get_lock():
            drawn.value += 1


def write_image_shard(source: Source, number: int, target: Path) -> None:
    """Write one input shard of a source as PNG files with captions, as img2dataset would, unless it is there."""
    with claim(target) as temporary:
        if temporary is not None:
            with temporary.open("r+b") as file:
                write_pictures(file, (item for item in source.read(number) if isinstance(item, CaptionedImage)))
