"""What is evaluated: a trained pipeline whose pictures are drawn when a metric asks for them, and kept."""

import copy
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.evaluation.journal import as_lines
from microdit.evaluation.pictures import (
    Making,
    Pictures,
    PicturesError,
    Unfinished,
    fingerprint,
    kept_making,
    plain_sampling,
)
from microdit.evaluation.sharing import ALONE, Ranks, batches_of
from microdit.files import alone_in, write_whole
from microdit.kinds import LARGEST_INTEGER, Limits, Positive, check_arguments
from microdit.pipeline import LatentDiffusion, Precision
from microdit.progress import Pace, counted, say
from microdit.sampling.samplers import SAMPLERS
from microdit.sampling.settings import GuidanceInterval, GuidanceName, SamplerName, SamplingSettings, SamplingSteps

Unit = TypeVar("Unit")
Result = TypeVar("Result")
Report = Callable[..., None]  # (done, total, of what: evaluations of the network where it is not said)

# What metrics' settings hold: pictures or scenes, and the kinds of shapes that take turns.
Count = Annotated[int, Limits(1, 10**6)]
Domains = Annotated[Sequence[Literal["real", "synthetic"]], Limits(1, 2)]
PICTURES_A_CALL = 256
"""Pictures drawn by one call of generate(), which bounds the memory; call k draws with seed + k."""


class Seeded(TypedDict):
    """Pictures that are judged are the same each time."""

    seed: Annotated[int, Limits(0, LARGEST_INTEGER)]


class Sampling(Seeded, total=False):
    """Arguments of LatentDiffusion.generate that matter to a picture; null: as the run's own pictures are drawn."""

    sampler: SamplerName | None
    num_inference_steps: SamplingSteps | None
    guidance_scale: float | None
    guidance_interval: GuidanceInterval | None
    temperature: Positive | None
    guidance: GuidanceName | None
    precision: Precision | None


def silent(done: int, total: int, doing: str = "") -> None:
    """Report nothing."""


class Subject:
    """A pipeline under evaluation. `folder` keeps its pictures.

    `label` says what sets the weights apart from the default ones ("raw", "checkpoint=step_0001200"); `sampling`
    replaces what metrics ask for (arguments of LatentDiffusion.generate). Together with the values so changed the label
    makes the `suffix` of every number's name, so that numbers of different kinds never mix.

    With several `ranks` each has a subject of the same, and a part of the work. `refresh`: what is kept of true
    pictures is computed anew.
    """

    def __init__(
        self,
        pipeline: LatentDiffusion,
        folder: Path,
        label: Sequence[str] = (),
        sampling: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        progress: Report = silent,
        ranks: Ranks = ALONE,
        refresh: bool = False,
    ):
        self._pipeline, self.folder, self.label = pipeline, folder, list(label)
        self.ranks, self.refresh = ranks, refresh
        self.sampling, self.batch_size, self.progress = dict(sampling or {}), batch_size, progress
        self.changed: list[str] = []

    @property
    def pipeline(self) -> LatentDiffusion:
        """The pipeline itself, for metrics that look at the network."""
        return self._pipeline

    @property
    def device(self) -> torch.device:
        return self.pipeline.device

    @property
    def suffix(self) -> str:
        """What is added to the names of numbers: nothing, or such as "@raw,guidance_scale=2"."""
        return suffix([*self.label, *self.changed])

    @property
    def kept_in(self) -> Path:
        """The folder of the pictures whose numbers have this suffix, such as FOLDER/raw+guidance_scale_2: a name that
        can be typed after pictures= as it is."""
        return self.folder / "+".join(map(typeable, [*self.label, *self.changed]))

    def apart(self, name: str) -> "Subject":
        """The same, whose pictures and verdicts are kept in a folder of this name, apart from the others."""
        other = copy.copy(self)
        other.folder = self.folder / name
        return other

    def pictures(self, name: str, prompts: Sequence[str], sampling: Mapping[str, Any]) -> Pictures:
        """One picture a prompt, as `sampling` says (arguments of generate, with `seed`): those kept in `name`.tar if
        they are of this network, these prompts and this sampling, else drawn now. Another process that wants the
        same waits, and then has what the first one drew.

        Raises SettingsError for a sampling argument that generate() does not take.
        """
        asked = checked_sampling(sampling, self.pipeline.sampling)
        used = checked_sampling({**sampling, **self.sampling}, self.pipeline.sampling)
        self.changed = differing(plain_sampling(used), plain_sampling(asked))
        making = Making(list(prompts), plain_sampling(used), fingerprint(self.pipeline.dit), self.label)
        tar = self.kept_in / f"{name}.tar"
        tar.parent.mkdir(parents=True, exist_ok=True)
        with self.ranks.held_by_first(lambda: alone_in(tar.parent)):
            kept = self.ranks.of_first(lambda: kept_making(tar))
            if kept is None or not kept.covers(making):
                kept = self.draw(tar, making, used)
            return Pictures(tar, kept, len(prompts))

    def draw(self, tar: Path, making: Making, sampling: Mapping[str, Any]) -> Making:
        """Draws what is not there yet of pictures, batch by batch, each of them by one rank; how they were made."""
        calls = batches_of(len(making.prompts), PICTURES_A_CALL)
        batches = [call[part.start : part.stop] for call in calls for part in batches_of(len(call), self.batch_size)]
        unfinished = Unfinished(tar, making)
        missing = self.ranks.of_first(lambda: unfinished.begin(batches))
        evaluations = len(missing) * evaluations_of(sampling)
        there = f", {len(batches) - len(missing):,} of {len(batches):,} batches are there" * (missing != batches)
        self.say(
            f"{tar.stem}: {sum(map(len, missing)):,} pictures to draw in {len(missing):,} batches on "
            f"{counted(self.ranks.count, 'device')}, {evaluations:,} evaluations of the network{there}"
        )
        own = sum(map(self.ranks.has, range(len(missing))))
        done = itertools.count()

        def draw_batch(batch: range) -> None:
            before = next(done)
            unfinished.add(batch, self.drawn(making.prompts, sampling, batch, before, own))

        self.each(missing, draw_batch, len(missing), f"{tar.stem}: drawing")
        return self.ranks.of_first(lambda: unfinished.finish(batches))

    def drawn(
        self, prompts: Sequence[str], sampling: Mapping[str, Any], batch: range, before: int, batches: int
    ) -> Float[Tensor, "n 3 h w"]:
        """The pictures of these numbers, the same whoever draws the others: a batch, `before` which this rank has drawn
        so many of its `batches`."""
        arguments = dict(sampling)
        call, first = divmod(batch.start, PICTURES_A_CALL)
        return self.pipeline.generate(
            prompts[batch.start : batch.stop],
            **arguments | {"seed": arguments["seed"] + call},
            first=first,
            batch_size=len(batch),
            progress=lambda done, total: self.progress(before * total + done, batches * total),
        )

    def each(
        self, units: Iterable[Unit], work: Callable[[Unit], Result], total: int | None, doing: str
    ) -> list[Result]:
        """`work` of every unit, shared among the ranks, all results in order on each of them; how far it is goes to
        the bar, and how long it will take, by its first unit, is said. `total`: of the units; None: not known yet."""
        pace = Pace(self.say, doing, None if total is None else -(-total // self.ranks.count))

        def timed(unit: Unit) -> Result:
            result = work(unit)
            pace.step()
            return result

        return self.ranks.each(units, timed)

    def say(self, text: str) -> None:
        """Tells a line, once for all ranks."""
        if self.ranks.leads:
            say(text)

    def write_lines(self, path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
        """Writes a file of JSON lines, once for all ranks."""
        if self.ranks.leads:
            write_whole(path, as_lines(lines))


class KeptSubject(Subject):
    """Pictures without their network: metrics that need no more can be computed again from `folder` alone."""

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        usual: SamplingSettings | None = None,
        ranks: Ranks = ALONE,
        refresh: bool = False,
    ):
        """`usual`: how the run's pictures are drawn where a metric does not say."""
        self.folder, self.label, self.changed, self.usual = folder, [], [], usual or SamplingSettings()
        self.progress, self._device, self.ranks, self.refresh = silent, torch.device(device), ranks, refresh

    @property
    def pipeline(self) -> LatentDiffusion:
        raise PicturesError(f"{self.folder} holds pictures only; this metric looks at the network: give checkpoint=RUN")

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def kept_in(self) -> Path:
        return self.folder

    def pictures(self, name: str, prompts: Sequence[str], sampling: Mapping[str, Any]) -> Pictures:
        """The kept pictures of these prompts, however they were sampled: `suffix` tells. Raises PicturesError."""
        tar = self.folder / f"{name}.tar"
        kept = kept_making(tar)
        if kept is None:
            found = ", ".join(sorted(path.stem for path in self.folder.glob("*.tar"))) or "none"
            raise PicturesError(f"{self.folder} holds no pictures {name}.tar (there are: {found})")
        if kept.prompts[: len(prompts)] != list(prompts):
            raise PicturesError(
                f"{tar} holds {len(kept.prompts)} pictures of other prompts than the {len(prompts)} this metric asks "
                "for: give the metric the settings they were drawn with, or draw new ones with checkpoint=RUN"
            )
        asked = checked_sampling(sampling, self.usual)
        self.label, self.changed = kept.label, differing({**asked, **kept.sampling}, plain_sampling(asked))
        return Pictures(tar, kept, len(prompts))


def checked_sampling(sampling: Mapping[str, Any], usual: SamplingSettings) -> dict[str, Any]:
    """All arguments of generate() that matter to a picture: what `sampling` says, and for the rest what is `usual`.

    Raises SettingsError for a name or value there is not, or without a seed.
    """
    check_arguments(Sampling, sampling, "sampling")
    apart = {name: sampling[name] for name in ("seed", "precision") if sampling.get(name) is not None}
    told = {name: value for name, value in sampling.items() if name not in ("seed", "precision")}
    return asdict(usual.told(told)) | apart


def evaluations_of(sampling: Mapping[str, Any]) -> int:
    """How often the network is evaluated for a batch of pictures."""
    return SAMPLERS[sampling["sampler"]].evaluations(sampling["num_inference_steps"])


def differing(now: Mapping[str, Any], was: Mapping[str, Any]) -> list[str]:
    """What of `now` is not as it was, as "name=value", by name."""
    return [f"{name}={short(now[name])}" for name in sorted(now) if now[name] != was.get(name)]


def suffix(parts: Sequence[str]) -> str:
    """What sets a number apart as the end of its name: nothing, or such as "@raw,guidance_scale=2"."""
    return "@" + ",".join(parts) if parts else ""


def typeable(part: str) -> str:
    """A part of a suffix without what a shell or Hydra takes for its own."""
    return re.sub(r"[^\w.-]+", "_", part).strip("_")


def short(value: Any) -> str:
    """A value of the sampling as part of a name: 2 and 2.0 are the same."""
    if isinstance(value, list):
        return "[" + "-".join(map(short, value)) + "]"
    return f"{value:g}" if isinstance(value, int | float) else str(value)
