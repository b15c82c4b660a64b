import fcntl
import os
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from microdit.data.shards.tars import TarError, tar_members
from microdit.files import alone_in, claim


def test_plain_webdataset_reads_latent_shards(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [3, 2], captions=2)
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    read = list(webdataset.WebDataset(tars, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in read] == [
        "00000000000",
        "00000000001",
        "00000000002",
        "00001000000",
        "00001000001",
    ]
    assert read[4]["latents_32.npy"].shape == (4, 2, 2)
    assert read[4]["latents_64.npy"].dtype == np.float16
    assert read[4]["caption.npy"].tolist() == [[101.0] * 8] * 5
    assert read[4]["caption_1.npy"][0, 0] == 101.25
    assert read[4]["json"] == {"caption": "caption 0 of 1/1", "captions": ["caption 0 of 1/1", "caption 1 of 1/1"]}


def test_a_batched_webdataset_pipeline_trains_on_them(tmp_path: Path, write_folder: Callable[..., Path]) -> None:
    folder = write_folder(tmp_path / "data", [4])
    dataset = (
        webdataset.WebDataset(str(folder / "00000.tar"), shardshuffle=False)
        .decode()
        .to_tuple("latents_32.npy", "caption.npy")
    )
    latents, captions = next(iter(dataset.map_tuple(torch.from_numpy, torch.from_numpy).batched(4)))
    assert latents.shape == (4, 4, 2, 2)
    assert captions.shape == (4, 5, 8)


def test_a_claimed_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "file"
    try:
        with claim(target) as temporary:
            assert temporary is not None
            temporary.write_bytes(b"half")
            raise RuntimeError("stopped")
    except RuntimeError:
        assert not target.exists()
    with claim(target) as temporary:
        assert temporary is not None
        temporary.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["file"]
    with claim(target) as temporary:
        assert temporary is None


def test_a_lock_ends_with_its_block_though_a_process_was_forked_meanwhile(tmp_path: Path) -> None:
    with alone_in(tmp_path), claim(tmp_path / "file") as temporary:
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        assert temporary is not None
    try:
        for path in (tmp_path, tmp_path / "file"):
            descriptor = os.open(path, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(descriptor)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"path": "a" * 1_000_000}, "a header of 1,000,"),
        ({"path": "a" * 5_000 + ".json"}, "a name of 5,005 characters"),
        ({"GNU.sparse.map": ",".join(["0"] * 20_000)}, "holes in files"),
    ],
)
def test_a_global_header_that_costs_each_member_much_is_refused(tmp_path: Path, header: dict, message: str) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=header) as tar:
        for number in range(3):
            tar.addfile(tarfile.TarInfo(f"{number}.json"))
    with pytest.raises(TarError, match=rf"0\.tar: .*{message}"):
        list(tar_members(tmp_path / "0.tar"))


def test_a_header_of_holes_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    header = tarfile.TarInfo("header")
    header.type, header.size = tarfile.XGLTYPE, 1 << 40
    with (tmp_path / "0.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate((1 << 40) + 2048)
    with pytest.raises(TarError, match="a header of 1,099,511,627,776 bytes"):
        list(tar_members(tmp_path / "0.tar"))


def test_thousands_of_headers_for_one_member_are_damage(tmp_path):
    """tarfile reads each of them by calling itself."""
    path = tmp_path / "names.tar"
    with path.open("wb") as file:
        for _ in range(5000):
            header = tarfile.TarInfo("././@LongLink")
            header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
            file.write(header.tobuf(tarfile.GNU_FORMAT) + b"a\0" + bytes(510))
        file.write(bytes(1024))
    with pytest.raises(TarError, match="no readable uncompressed tar"):
        list(tar_members(path))
