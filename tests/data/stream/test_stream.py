import json
import pickle
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from caption_texts import caption_texts
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from microdit.data.shards.description import MismatchError
from microdit.data.stream.batches import GlobalBatches
from microdit.data.stream.opening import DataMissingError, open_mix
from microdit.data.stream.stream import Batch, LatentStream


def opened(*folders: Path, weights: tuple[object, ...] = (), **options: object) -> LatentStream:
    sources = [
        {"name": folder.name, "folder": str(folder), "weight": weights[number] if weights else "size"}
        for number, folder in enumerate(folders)
    ]
    settings: dict = {"resolution_px": 32, "seed": 7, "autoencoder": "small", "text_encoder": "short"} | options
    return open_mix(sources, **settings)


def samples(batch: Batch) -> list[tuple[int, int, int]]:
    """(source, shard, row) of each sample, read from the numbers in it."""
    assert torch.equal(
        batch["captions"][:, 0, 0].float(), 100 * batch["latents"][:, 0, 0, 0].float() + batch["latents"][:, 1, 0, 0]
    )
    return list(zip(batch["source"].tolist(), *batch["latents"][:, :2, 0, 0].int().T.tolist(), strict=True))


def no_change(batch: Batch) -> Batch:
    return batch


@pytest.fixture
def two_sources(tmp_path: Path, write_folder: Callable[..., Path]) -> tuple[Path, Path]:
    return write_folder(tmp_path / "one", [5, 3, 8]), write_folder(tmp_path / "two", [4, 4])


def test_a_batch_holds_what_was_written(two_sources: tuple[Path, Path]) -> None:
    batch = opened(*two_sources)[3]
    assert batch["latents"].shape == (1, 4, 2, 2)
    assert batch["captions"].shape == (1, 5, 8)
    assert batch["latents"].dtype == batch["captions"].dtype == torch.float16
    assert batch["position"].tolist() == [3]
    assert opened(*two_sources, resolution_px=64)[3]["latents"].shape == (1, 4, 4, 2)


def test_each_source_gives_each_sample_once_an_epoch(two_sources: tuple[Path, Path]) -> None:
    counts = Counter(samples(opened(*two_sources).__getitems__(range(48))))
    assert len(counts) == 24
    assert set(counts.values()) == {2}


def test_a_source_that_ends_earlier_starts_its_next_epoch(two_sources: tuple[Path, Path]) -> None:
    found = samples(opened(*two_sources, weights=(0.5, 0.5)).__getitems__(range(32)))
    counts = Counter(found)
    assert all(count == (1 if source == 0 else 2) for (source, _, _), count in counts.items())
    assert len(counts) == 24


def test_the_caption_text_belongs_to_the_sample(two_sources: tuple[Path, Path]) -> None:
    stream = opened(*two_sources)
    expected = [f"caption 0 of {shard}/{row}" for _, shard, row in samples(stream.__getitems__(range(20)))]
    assert caption_texts(stream, range(20)) == expected


def test_of_several_captions_one_is_picked_for_each_epoch(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    stream = opened(write_folder(tmp_path / "several", [10], captions=3))
    picked: dict[tuple[int, int], set[float]] = {}
    for epoch in range(12):
        positions = range(10 * epoch, 10 * epoch + 10)
        batch = stream.__getitems__(positions)
        shards, rows = batch["latents"][:, :2, 0, 0].T
        choices = (batch["captions"][:, 0, 0] - 100 * shards - rows) / 0.25
        texts = [f"caption {int(c)} of {int(s)}/{int(r)}" for c, s, r in zip(choices, shards, rows, strict=True)]
        assert caption_texts(stream, positions) == texts
        for shard, row, choice in zip(shards.tolist(), rows.tolist(), choices.tolist(), strict=True):
            picked.setdefault((shard, row), set()).add(choice)
    assert sum(len(choices) == 3 for choices in picked.values()) >= 8


@pytest.mark.parametrize("told", ["full", "trimmed"])
def test_trimmed_captions_are_padded_with_zeros_whatever_the_description_tells(
    tmp_path: Path, write_folder: Callable[..., Path], told: str
) -> None:
    folder = write_folder(tmp_path / "trimmed", [10], storage="trimmed")
    description = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(description | {"caption_storage": told}))
    stream = opened(folder, shuffle=False)
    stream.__getitems__(range(10))["captions"].fill_(7)  # its memory is lent again
    captions = stream.__getitems__(range(10))["captions"]
    for row in range(10):
        assert (captions[row, : row % 5 + 1] == row).all()
        assert (captions[row, row % 5 + 1 :] == 0).all()


def test_a_fixed_set_has_a_length_and_holds_each_sample_once(two_sources: tuple[Path, Path]) -> None:
    stream = opened(*two_sources, shuffle=False)
    assert len(stream) == 24
    assert len(set(samples(stream.__getitems__(range(24))))) == 24


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(sum), min_size=1, max_size=3),
    shares=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    seed=st.integers(0, 2**32),
    stop=st.integers(0, 6),
)
def test_the_global_sequence_is_the_same_for_any_world_workers_and_stop(
    tmp_path_factory: pytest.TempPathFactory,
    write_folder: Callable[..., Path],
    sizes: list[list[int]],
    shares: list[int],
    seed: int,
    stop: int,
) -> None:
    root = tmp_path_factory.mktemp("mix")
    folders = [write_folder(root / f"source{number}", shards) for number, shards in enumerate(sizes)]
    stream = opened(*folders, weights=tuple(shares), seed=seed)
    whole = samples(stream.__getitems__(range(8 * 24)))
    for world in (1, 2, 3, 8):
        loaders = [
            DataLoader(stream, batch_sampler=GlobalBatches(24, rank, world, 24 // world, stop), collate_fn=no_change)
            for rank in range(world)
        ]
        ranks = [list(islice(loader, 8 - stop)) for loader in loaders]
        found = [sample for step in zip(*ranks, strict=True) for batch in step for sample in samples(batch)]
        assert found == whole[stop * 24 :]


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(two_sources: tuple[Path, Path], workers: int) -> None:
    stream = opened(*two_sources)
    expected = stream.__getitems__(range(6, 66))
    loader = DataLoader(stream, batch_sampler=GlobalBatches(6, start_step=1), collate_fn=no_change, num_workers=workers)
    batches = list(islice(loader, 10))
    for field in expected:
        assert torch.equal(torch.cat([batch[field] for batch in batches]), expected[field])


def test_a_stream_travels_to_another_process_without_its_data(two_sources: tuple[Path, Path]) -> None:
    stream = opened(*two_sources)
    stream[0]
    sent = pickle.dumps(stream)
    assert len(sent) < 20_000
    assert torch.equal(pickle.loads(sent)[5]["latents"], stream[5]["latents"])


def test_missing_data_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(
        DataMissingError, match=r"python prepare\.py source=shapes autoencoder=small text_encoder=short"
    ):
        open_mix(
            [{"name": "shapes_real", "folder": str(tmp_path / "nothing")}],
            resolution_px=32,
            seed=0,
            autoencoder="small",
            text_encoder="short",
        )


def test_other_encoders_than_the_data_was_made_with_are_refused(two_sources: tuple[Path, Path]) -> None:
    with pytest.raises(MismatchError, match="prepared with autoencoder small and text encoder short"):
        opened(*two_sources, autoencoder="large")
    with pytest.raises(MismatchError, match="latents of 4 channels"):
        opened(*two_sources, latent_channels=16)
    with pytest.raises(MismatchError, match="captions of"):
        opened(*two_sources, caption_shape=(77, 8))


def test_a_resolution_that_was_not_prepared_is_refused(two_sources: tuple[Path, Path]) -> None:
    with pytest.raises(MismatchError, match=r"only latents_32\.npy, latents_64\.npy"):
        opened(*two_sources, resolution_px=128)


def test_a_mix_of_nothing_says_so() -> None:
    with pytest.raises(DataMissingError, match=r"names no source.*data_mix\.sources"):
        opened()


def test_a_folder_without_samples_says_so(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataMissingError, match="holds no samples"):
        opened(write_folder(tmp_path / "empty", [0]))


def test_a_set_of_which_nothing_was_held_out_says_so_with_what_trains_on_it(
    tmp_path: Path, write_folder: Callable[..., Path]
) -> None:
    trained = write_folder(tmp_path / "mine/train", [3])
    with pytest.raises(DataMissingError, match=r"held_out=0, .*held_out=0\.05") as refused:
        opened(tmp_path / "mine/validation")
    said = str(refused.value).partition("'data_mix.validation=")[2].rpartition("'")[0]
    assert said == f"[{{name: validation, folder: {trained}}}]"
    assert len(opened(trained)) == 3
