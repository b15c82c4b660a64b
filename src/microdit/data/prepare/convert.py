"""Preparing: captioned pictures from any source -> latent shards with their index, by input shard, restartable
anywhere.

Output shard i depends on input shard i alone and appears whole or not at all; what is there already is not made again.
So killing it costs the shards in flight, and any number of jobs may share the work without speaking to each other.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from microdit.data.prepare.choices import background_of, views_of, with_chosen_captions
from microdit.data.prepare.encoding import Encoders, encode_captions, encode_features, encode_images
from microdit.data.prepare.plan import Recipe, keep_plan, latents_folder, share_of
from microdit.data.prepare.report import IGNORED, ShardReport, Summary, finish, renew, write_report
from microdit.data.shards.index import index_shard, write_part
from microdit.data.shards.tars import LatentSample, latent_fields, write_tar
from microdit.data.sources.captioned import CaptionedImage, EncodedImage, Found, Ignored, Source, Unwanted
from microdit.data.sources.images import EIGHTHS, BrokenImageError, FilteredImageError, square_views
from microdit.files import claim, folder_within
from microdit.progress import Report, silent

LARGEST_BATCH = 1 << 28  # bytes of the files of pictures, after which no other is taken; two batches are held at once
NOT_FINITE = "its latents or its caption's embedding are not finite in half precision"
Squares = dict[int, np.ndarray]


class Work(NamedTuple):
    """What output shards are made of, the folder they go to, and how."""

    source: Source
    folder: Path
    recipe: Recipe


MakeShards = Callable[
    [Work, Sequence[int], Report], int
]  # makes these output shards; returns how many pictures it read


def prepare(
    source: Source,
    split_folder: Path,
    encoders: Encoders,
    recipe: Recipe,
    shard_of: str = "1/1",
    progress: Report = silent,
    root: Path | None = None,
    refresh: bool = False,
    make: MakeShards | None = None,
) -> Summary:
    """Write the latent shards of `source` below `split_folder`, ROOT/NAME/SPLIT, or this job's share of them; the job
    that finds all of them there writes the index and the description. Returns what was written, filtered, broken and
    ignored, as far as it is known. `refresh`: make anew what was made from files that have changed since, or are no
    more. `make`: who makes the shards; None: this process, with `encoders`.

    SettingsError where a link leads out of ROOT (`root`, if NAME is not that of one folder), ValueError where the
    autoencoder cannot take a resolution, FileNotFoundError where the source is empty, NoRoomError where the disk is
    full (run it again), PlanChangedError where the folder was begun with other settings, or its files have changed and
    it is not to be refreshed.
    """
    check_resolutions(encoders, recipe)
    names = source.shards()
    mine = share_of(len(names), shard_of)
    folder = latents_folder(split_folder, encoders, recipe.resolutions_px)
    folder_within(root or split_folder.parents[1], folder)
    folder.mkdir(parents=True, exist_ok=True)
    keep_plan(folder, source, encoders, recipe, refresh)
    renew(folder, source, refresh)
    started, work = time.monotonic(), Work(source, folder.absolute(), recipe)
    images = (make or partial(make_here, encoders))(work, mine, progress)
    progress(len(mine), len(mine), f"{images} images")
    return finish(folder, source, encoders, recipe, images, time.monotonic() - started)


def make_here(encoders: Encoders, work: Work, numbers: Sequence[int], progress: Report) -> int:
    """Makes output shards in this process, one after the other; returns how many pictures were read."""
    started, images = time.monotonic(), 0
    pool = ThreadPoolExecutor(work.recipe.decode_threads, "decode")
    try:
        for done, number in enumerate(numbers):

            def report(read: int, done: int = done, before: int = images) -> None:
                seconds = max(time.monotonic() - started, 1e-9)
                progress(done, len(numbers), f"{before + read} images, {(before + read) / seconds:.0f} images/s")

            report(0)
            images += prepare_shard(work, number, encoders, pool, report)
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C too, what has not begun is not waited for
    return images


def check_resolutions(encoders: Encoders, recipe: Recipe) -> None:
    """Raises ValueError where the autoencoder cannot take a resolution."""
    downscale = encoders.autoencoder.downscale
    if recipe.aspect_ratio > 1 and (uneven := [px for px in recipe.resolutions_px if px % (EIGHTHS * downscale)]):
        raise ValueError(
            f"resolutions_px {uneven} must be multiples of {EIGHTHS * downscale} where aspect_ratio is above 1: sides "
            f"are eighths of them, and the autoencoder {encoders.autoencoder_name} divides these by {downscale}"
        )
    if uneven := [px for px in recipe.resolutions_px if px % downscale]:
        raise ValueError(
            f"resolutions_px {uneven} must be multiples of {downscale}, by which the autoencoder "
            f"{encoders.autoencoder_name} divides the sides of a picture"
        )


def prepare_shard(
    work: Work, number: int, encoders: Encoders, pool: Executor, report: Callable[[int], None] = lambda read: None
) -> int:
    """Make one output shard with its index and report, unless it is there; returns how many pictures were read."""
    source, folder, recipe = work
    target = folder / f"{number:05d}.tar"
    with claim(target) as partial, chance_of_shard(number, encoders.device):
        if partial is None:
            return 0
        outcome = ShardReport(source.shards()[number], state=source.state(number))
        with partial.open("r+b") as file:
            rows = latent_rows(source, number, encoders, recipe, outcome, pool, report)
            outcome.written = write_tar(file, map(latent_fields, rows))
        # The tar gets its name last: where it is, so are its index and its report.
        write_part(target, index_shard(partial, name=target.name))
        write_report(target, outcome)
    return outcome.read


@contextmanager
def chance_of_shard(number: int, device: str) -> Iterator[None]:
    """While the block runs, torch's generators give what they always give for this shard: an autoencoder may draw from
    its posterior, and who makes the shard, and after which others, shall not show."""
    with torch.random.fork_rng([device] if torch.device(device).type == "cuda" else []):
        torch.manual_seed(number)
        yield


def latent_rows(
    source: Source,
    number: int,
    encoders: Encoders,
    recipe: Recipe,
    outcome: ShardReport,
    pool: Executor,
    report: Callable[[int], None],
) -> Iterator[LatentSample]:
    """The rows of one output shard; what does not become one is entered in `outcome`."""
    for batch in decoded(chosen(source.read(number), recipe), recipe, pool):
        sound: list[tuple[int, CaptionedImage, Squares]] = []
        for place, item, squares in batch:
            if isinstance(squares, dict) and isinstance(item, CaptionedImage):
                sound.append((place, item, squares))
            elif isinstance(item, EncodedImage):
                yield from as_encoded(number, place, item, source, encoders, recipe, outcome)
            elif isinstance(item, Ignored):
                outcome.rejects.append([item.key, IGNORED, item.reason])
            elif isinstance(squares, Exception):
                outcome.reject(item.key, squares)
        yield from encode_batch(number, sound, source, encoders, recipe, outcome)
        outcome.read += len(batch)
        report(outcome.read)


def chosen(items: Iterable[Found], recipe: Recipe) -> Iterator[Found]:
    """What is in an input shard, each picture with those of its captions that the recipe asks for."""
    for item in items:
        is_picture = isinstance(item, CaptionedImage)
        yield with_chosen_captions(item, recipe.clean_captions, recipe.captions) if is_picture else item


def encode_batch(
    number: int,
    sound: list[tuple[int, CaptionedImage, Squares]],
    source: Source,
    encoders: Encoders,
    recipe: Recipe,
    outcome: ShardReport,
) -> Iterator[LatentSample]:
    """Latent samples of decoded pictures, without those whose encoding is not finite."""
    if not sound:
        return
    latents = encode_views(encoders, recipe, [squares for _, _, squares in sound])
    features = encode_features(encoders, [squares[max(squares)][0] for _, _, squares in sound])
    texts = [caption for _, item, _ in sound for caption in item.captions]
    encoded = encode_captions(encoders, texts, recipe.caption_storage)
    for row, (place, item, _) in enumerate(sound):
        captions, ends, cut = zip(*islice(encoded, len(item.captions)), strict=True)
        mine = latents[row]
        arrays = [*(array for ours in mine for array in ours.values()), *captions]
        arrays += [features[row]] if features[row] is not None else []
        if not all(np.isfinite(array).all() for array in arrays):
            outcome.reject(item.key, BrokenImageError(NOT_FINITE))
            continue
        outcome.captions += len(captions)
        outcome.caption_positions += sum(ends)
        outcome.captions_cut += sum(cut)
        # Keys are numbers: a dot or a folder in the source's key would mean something else in a WebDataset.
        key = f"{number:05d}{place:06d}"
        yield LatentSample(key, mine[0], captions, record_of(item, source), mine[1:], features[row], item.quality)


def encode_views(encoders: Encoders, recipe: Recipe, pictures: Sequence[Squares]) -> list[list[Squares]]:
    """Of each picture the latents of each view, by resolution; pictures of one shape are encoded together."""
    views, sides = range(len(pictures[0][recipe.resolutions_px[0]])), recipe.resolutions_px
    latents: list[list[Squares]] = [[{} for _ in views] for _ in pictures]
    alike: dict[tuple[int, ...], list[int]] = {}
    for row, squares in enumerate(pictures):
        alike.setdefault(squares[sides[0]].shape, []).append(row)
    for rows in alike.values():
        for view in views:
            for side in sides:
                encoded = encode_images(encoders, np.stack([pictures[row][side][view] for row in rows]))
                for row, one in zip(rows, encoded, strict=True):
                    latents[row][view][side] = one
    return latents


def as_encoded(
    number: int,
    place: int,
    item: EncodedImage,
    source: Source,
    encoders: Encoders,
    recipe: Recipe,
    outcome: ShardReport,
) -> Iterator[LatentSample]:
    """The row of what was encoded elsewhere, unless it is not what these encoders make."""
    autoencoder, text_encoder, latents = encoders.autoencoder, encoders.text_encoder, {}
    try:
        for px in recipe.resolutions_px:
            if px not in item.latents:
                raise BrokenImageError(f"it has no latents of {px} px, but of {', '.join(map(str, item.latents))}")
            shape = autoencoder.channels, px // autoencoder.downscale, px // autoencoder.downscale
            latents[px] = shaped(item.latents[px], shape, f"latents of {px} px")
        captions = [shaped(one, (text_encoder.length, text_encoder.channels), "caption") for one in item.embeddings]
    except BrokenImageError as error:
        outcome.reject(item.key, error)
        return
    outcome.captions += len(captions)
    outcome.caption_positions += text_encoder.length * len(captions)
    yield LatentSample(f"{number:05d}{place:06d}", latents, captions, record_of(item, source))


def shaped(numbers: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Numbers in the shape that they have for an encoder. BrokenImageError where they have another number, or are not
    finite."""
    if numbers.size != math.prod(shape):
        raise BrokenImageError(f"its {name} are {numbers.size:,} numbers, and {shape} are expected of these encoders")
    if not np.isfinite(numbers).all():
        raise BrokenImageError(NOT_FINITE)
    return numbers.reshape(shape)


def record_of(item: CaptionedImage | EncodedImage, source: Source) -> dict[str, object]:
    """What is kept of a picture beside its numbers."""
    record: dict[str, object] = {
        "caption": item.captions[0],
        "key": item.key,
        "source": str(source.identity["kind"]),
    }
    return record | ({"captions": list(item.captions)} if len(item.captions) > 1 else {})


def decode(recipe: Recipe, item: Found) -> Squares | Exception:
    """The squares of a picture, none of what is encoded already, or why there are none."""
    if isinstance(item, EncodedImage):
        return {}
    if isinstance(item, Unwanted):
        return FilteredImageError(item.reason)
    if not isinstance(item, CaptionedImage):
        return BrokenImageError(item.reason)
    try:
        views = views_of(item.key, recipe.crops, recipe.flips)
        background = background_of(item.key, recipe.transparency)
        sides, least = recipe.resolutions_px, recipe.smallest_side
        return square_views(
            item.image, sides, least, views=views, background=background, largest_ratio=recipe.aspect_ratio
        )
    except (BrokenImageError, FilteredImageError) as error:
        return error


def decoded(
    items: Iterator[Found], recipe: Recipe, pool: Executor
) -> Iterator[list[tuple[int, Found, Squares | Exception]]]:
    """Batches of (place in the shard, item, its squares or why there are none), each decoded by `pool` while the one
    before is used; smaller ones where the files are large."""
    numbered = enumerate(items)
    waiting: list[tuple[int, Found, Future]] = []
    while True:
        coming, room = [], LARGEST_BATCH
        while room > 0 and len(coming) < recipe.batch_size and (found := next(numbered, None)):
            coming.append((*found, pool.submit(decode, recipe, found[1])))
            room -= len(found[1].image) if isinstance(found[1], CaptionedImage) else 0
        if waiting:
            yield [(place, item, future.result()) for place, item, future in waiting]
        if not coming:
            return
        waiting = coming
