"""A run's data: opening it, batches of latents by position with their chance, and a word when it is waited for."""

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, TypedDict

import lightning as L

from microdit.data.prepare.embedded import EmbeddedShapes, ensure_shapes
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import Recipe
from microdit.data.shards.description import MismatchError
from microdit.data.stream.batches import GlobalBatches, LatentLoader
from microdit.data.stream.buckets import BucketStream
from microdit.data.stream.opening import open_mix
from microdit.data.stream.stream import LatentStream
from microdit.distributed.hardware import TrainerSettings, divide_batch
from microdit.files import DamagedFileError, read_json, write_json
from microdit.kinds import LARGEST_INTEGER, Limits, SettingsError, check_kind
from microdit.pipeline import LatentDiffusion
from microdit.progress import progress_bar
from microdit.representation.alignment import features_of
from microdit.runs.folder import DATA_FILE
from microdit.training.draws import TRAINING, VALIDATION, Samples
from microdit.training.settings import ReadingSettings, TrainingSettings, bind

log = logging.getLogger(__name__)
SHARDS_NAMED = 4
Latents = LatentStream | BucketStream
MOST_THREADS = 8


class WatchedLoader:
    """Iterates over `loader`, whose batches are those of `positions`, and adds up in `seconds` how long each was
    waited for.

    A batch that does not come within `stall_seconds` is reported with the rank and its shards, which `shards_of`
    names, and again each time the wait has doubled.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        positions: Iterable[list[int]],
        shards_of: Callable[[list[int]], list[str]],
        rank: int,
        stall_seconds: float,
    ):
        self.loader, self.positions, self.shards_of = loader, positions, shards_of
        self.rank, self.stall_seconds = rank, stall_seconds
        self.seconds = 0.0
        self.waiting: tuple[float, list[int]] | None = None  # since when, and for which positions

    def __iter__(self) -> Iterator[Any]:
        closed = Event()
        Thread(target=self.watch, args=(closed,), name="watch", daemon=True).start()
        batches = iter(self.loader)
        try:
            for positions in self.positions:
                began = time.monotonic()
                self.waiting = began, positions
                batch = next(batches, None)
                self.waiting = None
                self.seconds += time.monotonic() - began
                if batch is None:
                    return
                yield batch
        finally:
            closed.set()

    def watch(self, closed: Event) -> None:
        told_at, told_about = 0.0, None
        while not closed.wait(min(1.0, self.stall_seconds / 4)):
            waiting = self.waiting
            if waiting is None:
                continue
            waited = time.monotonic() - waiting[0]
            if waiting is not told_about:
                told_at = self.stall_seconds / 2
            if waited > 2 * told_at:
                told_at, told_about = waited, waiting
                self.report(waited, waiting[1])

    def report(self, waited: float, positions: list[int]) -> None:
        shards = self.shards_of(positions)
        more = f" and {len(shards) - SHARDS_NAMED} more" if len(shards) > SHARDS_NAMED else ""
        log.warning(
            "rank %d has waited %.0f s for its data: samples %d to %d, from %s%s. Is their storage out of reach?",
            self.rank,
            waited,
            positions[0],
            positions[-1],
            ", ".join(shards[:SHARDS_NAMED]),
            more,
        )


class LatentData(L.LightningDataModule):
    """Batches of latents, captions and chance.

    Step t of training reads positions [t * global_batch_size, (t + 1) * global_batch_size) whatever the number of ranks
    and workers; after a resume it starts at the step that the checkpoint holds. A batch that is waited for longer than
    `stall_seconds` is reported.
    """

    def __init__(
        self,
        train: Latents,
        validation: Latents,
        settings: TrainingSettings,
        patch_size: int,
        quality_dropout: float | None = None,
    ):
        super().__init__()
        stage, self.hardware, self.reading = settings.resolution_stage, settings.trainer, settings.reading
        self.global_batch_size = stage.global_batch_size
        self.workers = reading_threads(self.reading, self.hardware)
        pins = self.hardware.accelerator == "gpu"
        chance = settings.seed, TRAINING, patch_size, stage.caption_dropout
        self.train_samples = Samples(train, *chance, pins, quality_dropout)
        # Validation's noise is the same in every run, whatever its seed, so that runs can be compared.
        self.validation_samples = Samples(validation, 0, VALIDATION, patch_size, caption_dropout=0.0, pin_memory=pins)
        self.watched: WatchedLoader | None = None

    def train_dataloader(self) -> WatchedLoader:
        assert self.trainer is not None
        batches = GlobalBatches(
            self.global_batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            device_batch_size=divide_batch(self.global_batch_size, self.hardware).device_batch_size,
            start_step=self.trainer.global_step,
        )
        self.watched = WatchedLoader(
            LatentLoader(self.train_samples, batches, self.workers),
            batches,
            self.train_samples.latents.shards_of,
            rank=self.trainer.global_rank,
            stall_seconds=self.reading.stall_seconds,
        )
        return self.watched

    def validation_loader(self) -> LatentLoader:
        assert self.trainer is not None
        batches = validation_batches(
            len(self.validation_samples),
            self.hardware.validation_batch_size,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            starts=self.validation_samples.latents.starts,
        )
        return LatentLoader(self.validation_samples, batches, self.workers)


class SamplesKept(TypedDict):
    """What is kept of the samples of a source: how many, and a name for them and their order."""

    samples: Annotated[int, Limits(0, LARGEST_INTEGER)]
    fingerprint: str


def keep_data(run: Path, streams: Mapping[str, Latents], resumed: bool) -> None:
    """Keeps in a run's folder which samples it trains and validates on, or where it is resumed compares them.

    MismatchError where a source by the same name holds others by now: the run would go on with other pictures, under
    the name of those it began with. DamagedFileError for a file that is none.
    """
    now: dict[str, Any] = {
        f"{split}/{source.name}": {"samples": source.samples, "fingerprint": source.reader.index.fingerprint()}
        for split, stream in streams.items()
        for source in stream.sources
    }
    path = run / DATA_FILE
    if resumed and path.is_file():
        cure = f"remove it if the data is the one that the run began with: {path}"
        kept = read_json(path, cure)
        try:
            check_kind(kept, Mapping[str, SamplesKept], f"{path}:")
        except SettingsError as error:
            raise DamagedFileError(f"{error}; {cure}") from error
        for name in now.keys() & kept.keys():
            if now[name] != kept[name]:
                raise MismatchError(
                    f"the data of {name} is not the one that this run began with: {kept[name]['samples']:,} samples "
                    f"then, {now[name]['samples']:,} now, and other bytes. Put that data back, start a new run from "
                    f"its weights (init_from={run}), or if it is meant, remove {path} and resume again"
                )
    run.mkdir(parents=True, exist_ok=True)
    write_json(path, now)


def reading_threads(reading: ReadingSettings, hardware: TrainerSettings) -> int:
    """Threads that make batches ahead: what `reading` says, or 1 beside a CPU, which has enough to do, and those of its
    share of the cores, but for one, beside a GPU."""
    if reading.num_workers is not None:
        return reading.num_workers
    if hardware.accelerator != "gpu":
        return 1
    return max(1, min(MOST_THREADS, (os.cpu_count() or 1) // hardware.devices - 1))


def validation_batches(
    samples: int, batch_size: int, rank: int, world_size: int, starts: Sequence[int] = (0,)
) -> list[list[int]]:
    """A rank's positions, every `world_size`-th, in as many batches as every other rank has (FSDP needs that); a batch
    for itself from each of `starts` on, where pictures of another shape begin.

    Ranks that run out early have a batch of one position that is another rank's.
    """
    batches, of_another = [], [0 if rank else 1]
    for start, end in itertools.pairwise([*starts, samples]):
        by_rank = [range(start + (one - start) % world_size, end, world_size) for one in range(world_size)]
        most = -(-max(map(len, by_rank)) // batch_size)
        mine = by_rank[rank]
        batches += [list(mine[i : i + batch_size]) or of_another for i in range(0, most * batch_size, batch_size)]
    return batches


def check_patches(stream: Latents, patch_size: int) -> None:
    """Raises MismatchError where pictures of a shape in the mix cannot be cut into patches."""
    uneven = [shape[1:] for shape in stream.shares if shape[1] % patch_size or shape[2] % patch_size]
    if uneven:
        raise MismatchError(
            f"latents of {' and '.join(f'{height} x {width}' for height, width in uneven)} in the mix cannot be cut "
            f"into patches of {patch_size}: prepare the data with aspect_ratio=1 or at a resolution of which an eighth "
            f"is a multiple of {patch_size} latents, or train with another patch size"
        )


def open_data(settings: TrainingSettings, pipeline: LatentDiffusion) -> tuple[Latents, Latents]:
    """Streams for training and validation; the embedded shapes are made first if the mix has them and they are missing.

    Raises DataMissingError naming the command that makes what is missing, MismatchError when the data was encoded at
    another width or length than the run's encoders have.
    """
    names = settings.choices["autoencoder"], settings.choices["text_encoder"]
    resolution_px, mix, reading = settings.resolution_stage.resolution_px, settings.data_mix, settings.reading
    features = features_of(settings.representation)
    if mix.embedded is not None and settings.makes_data:
        parts = settings.autoencoder, settings.text_encoder
        learnt_from = dict(settings.representation.get("features", {})) if features is not None else {}
        both = pipeline.autoencoder, pipeline.text_encoder
        encoders = Encoders(*both, *names, "cpu", *parts, features, learnt_from)
        with progress_bar("shapes") as report:
            ensure_shapes(
                settings.data_root,
                bind(EmbeddedShapes, mix.embedded, "data_mix.embedded"),
                encoders,
                Recipe([resolution_px]),
                report,
            )

    def opened(sources: list[dict[str, Any]], shuffle: bool) -> Latents:
        stream = open_mix(
            sources,
            resolution_px=resolution_px,
            seed=settings.seed,
            autoencoder=names[0],
            text_encoder=names[1],
            latent_channels=pipeline.autoencoder.channels,
            caption_shape=(pipeline.text_encoder.length, pipeline.text_encoder.channels),
            shuffle=shuffle,
            on_corrupt=reading.on_corrupt,  # type: ignore[arg-type]
            max_corrupt_share=reading.max_corrupt_share,
            cache_folder=reading.cache_folder,
            cache_gigabytes=reading.cache_gigabytes,
            pin_memory=settings.trainer.accelerator == "gpu",
            features=features.name if features is not None and shuffle else None,
            feature_channels=features.channels if features is not None else None,
            batch_size=settings.resolution_stage.global_batch_size,
            quality=pipeline.dit.quality_dropout is not None and shuffle,
        )
        if len(stream.shares) > 1:
            check_patches(stream, pipeline.dit.patch_size)
        return stream

    return opened(mix.sources, True), opened(mix.validation, False)
