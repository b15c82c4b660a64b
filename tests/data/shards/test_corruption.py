import logging
import random
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from microdit.data.prepare.foreign import index_foreign
from microdit.data.shards.corruption import CorruptSampleError, TooCorruptError
from microdit.data.shards.index import index_folder
from microdit.data.shards.tars import LatentSample, latent_fields, npy_bytes, tar_members, write_tar
from microdit.data.stream.batches import GlobalBatches, LatentLoader
from microdit.data.stream.opening import open_mix
from microdit.data.stream.stream import LatentStream

LATENTS, CAPTION = np.ones((4, 2, 2), np.float16), np.ones((5, 8), np.float16)


def opened(folder: Path, on_corrupt: str = "error", share: float = 1.0, shuffle: bool = False) -> LatentStream:
    return open_mix(
        [{"name": "data", "folder": str(folder)}],
        resolution_px=32,
        seed=0,
        autoencoder="small",
        text_encoder="short",
        shuffle=shuffle,
        on_corrupt=on_corrupt,
        max_corrupt_share=share,
    )


@pytest.fixture
def folder(tmp_path: Path, write_folder: Callable[..., Path]) -> Path:
    return write_folder(tmp_path / "data", [6, 6])


def test_any_changed_byte_that_is_read_is_found(folder: Path) -> None:
    clean = opened(folder).__getitems__(range(12))
    tar = folder / "00001.tar"
    whole = bytearray(tar.read_bytes())
    chance = random.Random(0)
    read = [member for member in tar_members(tar) if "latents_32" in member.name or "caption" in member.name]
    inside = {position for member in read for position in range(member.offset - 512, member.offset + member.length)}
    places = chance.sample(range(len(whole)), 150) + chance.sample(sorted(inside), 150)
    for position in places:
        damaged = bytearray(whole)
        damaged[position] ^= chance.randrange(1, 256)
        tar.write_bytes(damaged)
        if position in inside:
            with pytest.raises(
                CorruptSampleError, match=r"00001\.tar: \d+\.(latents_32|caption)\.npy: .*index\.npz disagree"
            ):
                opened(folder).__getitems__(range(12))
        else:
            assert torch.equal(opened(folder).__getitems__(range(12))["latents"], clean["latents"])


def test_any_changed_byte_before_indexing_is_found_or_harmless(folder: Path, tmp_path: Path) -> None:
    tar = folder / "00000.tar"
    whole = bytearray(tar.read_bytes())
    chance = random.Random(1)
    for position in chance.sample(range(len(whole)), 120):
        damaged = bytearray(whole)
        damaged[position] = chance.randrange(256)
        tar.write_bytes(damaged)
        index_folder(folder, on_corrupt="skip")
        stream = opened(folder, "skip")
        batch = stream.__getitems__(range(len(stream)))
        assert torch.isfinite(batch["latents"]).all()
        assert torch.isfinite(batch["captions"]).all()


def test_skipping_replaces_counts_and_names_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tar = folder / "00000.tar"
    damaged = bytearray(tar.read_bytes())
    member = next(member for member in tar_members(tar) if "000002.latents_32" in member.name)
    damaged[member.offset + 140] ^= 1
    tar.write_bytes(damaged)
    stream = opened(folder, "skip")
    with caplog.at_level(logging.WARNING):
        first, second = stream.__getitems__(range(12)), stream.__getitems__(range(12))
    assert first["replaced"].nonzero().flatten().tolist() == [2]
    assert first["latents"][2, :2, 0, 0].tolist() == [0, 3], "the next sample stands in"
    assert torch.equal(first["latents"], second["latents"])
    assert stream.policy.broken == 2
    assert sum("00000000002.latents_32.npy" in record.message for record in caplog.records) == 1


def test_what_replaces_a_sample_does_not_depend_on_the_batch(folder: Path) -> None:
    (folder / "00001.tar").unlink()
    stream = opened(folder, "skip", shuffle=True)
    whole = stream.__getitems__(range(24))
    assert whole["replaced"].sum() == 12
    assert (whole["latents"][:, 0] == 0).all()
    single = [stream[position]["latents"] for position in range(24)]
    assert torch.equal(torch.cat(single), whole["latents"])
    batches = islice(LatentLoader(opened(folder, "skip", shuffle=True), GlobalBatches(8), workers=3), 3)
    assert torch.equal(torch.cat([batch["latents"] for batch in batches]), whole["latents"])


def test_a_shard_that_is_gone_is_named(folder: Path) -> None:
    (folder / "00001.tar").unlink()
    with pytest.raises(
        CorruptSampleError, match=r"00001\.tar: 00001\d+\.\w+\.npy: .*No such file.*reading\.on_corrupt=skip"
    ):
        opened(folder).__getitems__(range(12))


def test_a_tar_that_shrank_after_indexing_is_named(folder: Path) -> None:
    with (folder / "00001.tar").open("r+b") as file:
        file.truncate(3000)
    with pytest.raises(CorruptSampleError, match="ends before"):
        opened(folder).__getitems__(range(12))


def test_exchanged_tars_disagree_with_the_index(folder: Path) -> None:
    shutil.copy(folder / "00000.tar", folder / "00001.tar")
    with pytest.raises(CorruptSampleError, match="disagree"):
        opened(folder).__getitems__(range(6, 12))


@pytest.mark.parametrize(
    ("field", "content", "reason"),
    [
        ("latents_32.npy", npy_bytes(np.full((4, 2, 2), np.nan, np.float16)), "NaN or infinite"),
        ("caption.npy", npy_bytes(np.full((5, 8), np.inf, np.float16)), "NaN or infinite"),
        ("latents_32.npy", npy_bytes(np.ones((4, 2, 3), np.float16)), r"holds <f2 \(4, 2, 3\) where <f2 \(4, 2, 2\)"),
        ("latents_32.npy", npy_bytes(np.ones((4, 2, 2), np.float32)), "holds <f4"),
        ("caption.npy", npy_bytes(np.ones((5, 9), np.float16)), "holds <f2"),
        ("caption.npy", npy_bytes(CAPTION)[:-2], "no readable array"),
        ("caption.npy", b"", "no readable array"),
        ("caption.npy", b"\x80\x04K\x01.", "no readable array"),
        ("caption.npy", None, "has no such field"),
    ],
)
def test_unfit_fields_are_refused_or_replaced(tmp_path: Path, field: str, content: bytes | None, reason: str) -> None:
    good = [latent_fields(LatentSample(f"{row:04d}", {32: LATENTS}, [CAPTION], {"caption": "x"})) for row in range(4)]
    if content is None:
        del good[1][field]
    else:
        good[1][field] = content
    with (tmp_path / "00000.tar").open("wb") as file:
        write_tar(file, good)
    index_foreign(tmp_path)
    with pytest.raises(CorruptSampleError, match=rf"00000\.tar: 0001\.{field}: .*{reason}"):
        opened(tmp_path).__getitems__(range(4))
    batch = opened(tmp_path, "skip").__getitems__(range(4))
    assert batch["replaced"].tolist() == [False, True, False, False]
    assert (batch["latents"] == 1).all()
    assert (batch["captions"] == 1).all()


def test_too_many_broken_samples_stop_the_run(folder: Path) -> None:
    (folder / "00000.tar").unlink()
    stream = opened(folder, "skip", share=0.01, shuffle=True)
    with pytest.raises(TooCorruptError, match=r"allowed share of 1\.00%.*reading\.max_corrupt_share"):
        stream.__getitems__(range(64))


def test_nothing_readable_at_all_ends_with_an_error(folder: Path) -> None:
    for tar in folder.glob("*.tar"):
        tar.unlink()
    with pytest.raises(CorruptSampleError, match="no readable sample"):
        opened(folder, "skip").__getitems__(range(2))


def test_an_error_in_a_worker_arrives_with_its_batch(folder: Path) -> None:
    (folder / "00001.tar").unlink()
    batches = iter(LatentLoader(opened(folder), [[0, 1], [2, 3], [6, 7], [0, 1]], workers=2))
    assert len(next(batches)["latents"]) == len(next(batches)["latents"]) == 2
    with pytest.raises(CorruptSampleError):
        next(batches)
