"""Pictures of several shapes: each step has one of them, none is lost, and who reads, from where on, does not show."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from microdit.data.prepare.convert import prepare
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import Recipe
from microdit.data.shards.description import read_description
from microdit.data.sources.folder import FolderSource
from microdit.data.stream.batches import GlobalBatches
from microdit.data.stream.buckets import BucketStream
from microdit.data.stream.opening import open_mix
from microdit.encoders import PixelAutoencoder, WordsTextEncoder

BATCH = 4
# Sides of the pictures, how many there are, and the latents that they become at 16 px.
KINDS = {(32, 32): (11, (16, 16)), (44, 32): (7, (14, 18)), (32, 60): (5, (20, 12)), (90, 24): (2, (12, 20))}


def write_pictures(folder: Path, kinds: dict[tuple[int, int], tuple[int, tuple[int, int]]]) -> Path:
    """Pictures whose grey is the number of each."""
    folder.mkdir(parents=True)
    number = 0
    for (width, height), (count, _) in kinds.items():
        for _ in range(count):
            Image.fromarray(np.full((height, width, 3), 5 * number, np.uint8)).save(folder / f"{number:02d}.png")
            (folder / f"{number:02d}.txt").write_text(f"number {number}")
            number += 1
    return folder


def prepared(folder: Path, kinds: dict[tuple[int, int], tuple[int, tuple[int, int]]], ratio: float = 2.0) -> Path:
    """They as latents, in shards of six."""
    encoders = Encoders(PixelAutoencoder(), WordsTextEncoder(channels=8, length=6), "pixel", "words")
    source = FolderSource(str(write_pictures(folder / "pictures", kinds)), shard_size=6)
    recipe = Recipe([16], aspect_ratio=ratio, batch_size=4)
    return prepare(source, folder / "data/mine/train", encoders, recipe).folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(tmp_path_factory.mktemp("several"), KINDS)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second source, of 9 squares."""
    return prepared(tmp_path_factory.mktemp("squares"), {(32, 32): (9, (16, 16))}, ratio=1.0)


def opened(*folders: Path, shuffle: bool = True) -> BucketStream:
    sources = [{"name": f"source{number}", "folder": str(folder)} for number, folder in enumerate(folders)]
    stream = open_mix(
        sources, resolution_px=16, seed=3, autoencoder="pixel", text_encoder="words", shuffle=shuffle, batch_size=BATCH
    )
    assert isinstance(stream, BucketStream)
    return stream


def numbers_in(latents: torch.Tensor) -> list[int]:
    """Which pictures these are."""
    return ((latents.float().mean(dim=(1, 2, 3)) + 1) / 2 * 255 / 5).round().int().tolist()


def steps(stream: BucketStream, count: int, start: int = 0) -> Iterator[torch.Tensor]:
    positions = iter(GlobalBatches(BATCH, start_step=start))
    for _ in range(count):
        yield stream.__getitems__(next(positions))["latents"]


def test_the_index_says_which_shape_each_picture_has(folder: Path) -> None:
    stream = opened(folder, shuffle=False)
    expected = {(3, *shape): count for count, shape in KINDS.values()}
    assert {shape: len(each) for shape, each in stream.streams.items()} == expected
    assert {shape: round(share * 25) for shape, share in stream.shares.items()} == expected
    assert read_description(folder / "dataset.json").aspect_ratio == 2.0


def test_every_batch_has_one_shape_and_none_is_lost(folder: Path) -> None:
    stream = opened(folder)
    period = 25 * BATCH  # after which each bucket has given each of its samples as often
    seen = Counter(number for latents in steps(stream, period) for number in numbers_in(latents))
    assert seen == dict.fromkeys(range(25), BATCH * BATCH)
    shapes = Counter(tuple(latents.shape[2:]) for latents in steps(stream, 25))
    assert shapes == {shape: count for count, shape in KINDS.values()}  # evenly spread


@pytest.mark.parametrize("start", [1, 7, 33])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_resumed_stream_goes_on_to_the_bit_on_any_number_of_ranks(folder: Path, start: int, ranks: int) -> None:
    whole = list(steps(opened(folder), start + 6))[start:]
    parts = []
    for rank in range(ranks):
        stream, positions = opened(folder), iter(GlobalBatches(BATCH, rank, ranks, start_step=start))
        parts.append([stream.__getitems__(next(positions))["latents"] for _ in range(6)])
    for step, latents in enumerate(whole):
        assert torch.equal(torch.cat([part[step] for part in parts]), latents)


def test_sources_are_mixed_within_each_shape_and_counted(folder: Path, squares: Path) -> None:
    stream = opened(folder, squares)
    assert [round(34 * share) for share in stream.shares.values()] == [2, 7, 20, 5]
    for count in (0, 3, 50, 34 * BATCH):
        seen = Counter()
        for first in range(0, count, BATCH):
            batch = stream.__getitems__(range(first, min(first + BATCH, count)))
            assert batch["position"].tolist() == [*range(first, min(first + BATCH, count))]
            seen.update(stream.names[number] for number in batch["source"].tolist())
        assert stream.source_counts(count) == {name: seen[name] for name in stream.names}


def test_a_fixed_set_holds_each_sample_once_shape_after_shape(folder: Path) -> None:
    stream = opened(folder, shuffle=False)
    assert len(stream) == 25
    borders = [*stream.starts, 25]
    found = []
    for first, end in itertools.pairwise(borders):
        found += numbers_in(stream.__getitems__(range(first, end))["latents"])
    assert sorted(found) == [*range(25)]
    assert stream.shards_of([0])[0].endswith(".tar")


def test_positions_of_several_shapes_are_no_batch(folder: Path) -> None:
    with pytest.raises(ValueError, match="are pictures of several shapes"):
        opened(folder, shuffle=False).__getitems__(range(25))


def test_a_picture_of_another_shape_than_its_neighbours_is_cut_as_little_as_can_be(folder: Path) -> None:
    stream = opened(folder, shuffle=False)
    captions = {shape[1:]: each.__getitems__(range(len(each)))["captions"] for shape, each in stream.streams.items()}
    words = WordsTextEncoder(channels=8, length=6)
    for shape, wanted in (((20, 12), range(18, 23)), ((12, 20), range(23, 25))):
        expected = words.encode([f"number {number}" for number in wanted]).half()
        assert torch.equal(captions[shape], expected)
