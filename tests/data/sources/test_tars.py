"""A tar tells of every member, and tars are read however they are packed and wherever they lie."""

import bz2
import gzip
import lzma
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_tars import tar_of

from microdit.data.sources import archives
from microdit.data.sources.captioned import CaptionedImage, Found, Ignored, Unreadable
from microdit.data.sources.tars import TarSource

PAIR = tar_of([("a.jpg", b"picture"), ("a.txt", b"a boat")])


def everything(source: TarSource) -> list[Found]:
    return [*(item for shard in range(len(source.shards())) for item in source.read(shard)), *source.beside()]


def captions(found: Sequence[Found]) -> list[tuple[str, bytes, list[str]]]:
    return [(item.key, item.image, list(item.captions)) for item in found if isinstance(item, CaptionedImage)]


def told(found: Sequence[Found]) -> dict[str, str]:
    return {item.key: item.reason for item in found if not isinstance(item, CaptionedImage)}


def of_members(tmp_path: Path, *members: tuple[str, bytes], **settings: str) -> list[Found]:
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    return everything(TarSource(str(tmp_path), **settings))  # type: ignore[arg-type]


def test_every_picture_under_a_key_is_read(tmp_path: Path) -> None:
    found = of_members(tmp_path, ("cat.jpg", b"one"), ("cat.png", b"two"), ("cat.txt", b"a cat"), ("cat.JPG", b"three"))
    expected = [("cat", b"one", ["a cat"]), ("cat.png", b"two", ["a cat"]), ("cat.JPG", b"three", ["a cat"])]
    assert captions(found) == expected
    assert len(found) == 3


def test_of_two_members_of_one_name_the_later_counts_and_the_other_is_told(tmp_path: Path) -> None:
    twice = ("a.jpg", b"old"), ("a.txt", b"old"), ("a.jpg", b"new"), ("a.txt", b"new")
    found = of_members(tmp_path, *twice)
    assert captions(found) == [("a", b"new", ["new"])]
    assert [item.key for item in found if isinstance(item, Ignored)] == ["a.jpg", "a.txt"]


def test_members_that_are_no_part_of_a_picture_are_told(tmp_path: Path) -> None:
    members = [("a.jpg", b"x"), ("a.txt", b"a boat"), ("a.cls", b"3"), ("README.md", b""), ("__MACOSX/._a.jpg", b"x")]
    found = of_members(tmp_path, *members, ("b.cls", b"4"), (".cache/c.jpg", b"x"), ("d.txt", b"d"))
    assert [key for key, _, _ in captions(found)] == ["a"]
    ignored = {item.key for item in found if isinstance(item, Ignored)}
    assert ignored == {"README.md", "__MACOSX/._a.jpg", "b.cls", ".cache/c.jpg"}
    assert {item.key: item.reason for item in found if isinstance(item, Unreadable)} == {
        "d": "no picture beside the caption"
    }


@pytest.mark.parametrize("suffix", [".caption", ".jpg.txt"])
def test_a_near_miss_in_a_tar_is_named_with_a_setting_that_reads_it(tmp_path: Path, suffix: str) -> None:
    members = ("d/a.jpg", b"x"), (f"d/a{suffix}", b"a boat")
    assert f"source.caption_suffix={suffix}" in told(of_members(tmp_path, *members))["d/a"]
    assert captions(of_members(tmp_path, *members, caption_suffix=suffix)) == [("d/a", b"x", ["a boat"])]


def test_the_column_that_was_asked_for_is_read_in_tars_too(tmp_path: Path) -> None:
    members = ("a.jpg", b"x"), ("a.txt", b"IMG_42"), ("a.json", b'{"caption": "alt", "long": "a boat"}')
    assert captions(of_members(tmp_path, *members))[0][2] == ["IMG_42"]
    assert captions(of_members(tmp_path, *members, caption_column="long"))[0][2] == ["a boat"]


def test_tars_in_sub_folders_are_read_and_what_else_lies_there_is_told(tmp_path: Path) -> None:
    for name in ("0.tar", "sub/deep/1.tar", ".hidden/2.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PAIR)
    for name in ("0.parquet", "0_stats.json", "photo.jpg", "sub/list.txt"):
        (tmp_path / name).write_bytes(b"")
    found = everything(TarSource(str(tmp_path)))
    assert len(captions(found)) == 2
    assert set(told(found)) == {".hidden/2.tar", "photo.jpg", "sub/list.txt"}


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("0.tar.gz", gzip.compress),
        ("0.tgz", gzip.compress),
        ("0.tar", gzip.compress),
        ("0.tar.bz2", bz2.compress),
        ("0.tar.xz", lzma.compress),
        ("0.TAR", bytes),
    ],
)
def test_compressed_tars_are_read_and_leave_nothing_behind(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars" / name).write_bytes(pack(PAIR))
    source = TarSource(str(tmp_path / "tars"), download_folder=str(tmp_path / "unpacked"))
    assert captions(everything(source)) == [("a", b"picture", ["a boat"])]
    assert not [*tmp_path.glob("unpacked/*")]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_compressed_tar_is_told(tmp_path: Path, pack: Callable[[bytes], bytes], damage: str) -> None:
    whole = pack(tar_of([(f"{n}.jpg", bytes([n]) * 5000) for n in range(9)]))
    middle = len(whole) // 2
    changed = whole[:middle] + bytes(8) + whole[middle + 8 :]
    (tmp_path / "0.tar.gz").write_bytes(whole[:middle] if damage == "cut" else changed)
    assert "damaged tar" in told(everything(TarSource(str(tmp_path))))["0.tar.gz"]


def test_a_tar_that_unpacks_to_much_more_than_its_file_is_told_and_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ROOM", 1 << 20)
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(tar_of([("a.jpg", bytes(1 << 25))])))
    assert told(everything(TarSource(str(tmp_path)))) == {
        "0.tar.gz": "it is compressed, and unpacks to over 100 times its size"
    }


def test_zstd_without_its_library_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "0.tar.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(99))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "unpack it first (zstd -d)" in told(everything(TarSource(str(tmp_path))))["0.tar.zst"]


@pytest.mark.parametrize(
    ("name", "said"),
    [("a.jpg", "source=folder"), ("t.parquet", "source=huggingface"), ("shard.00000.mds", "source=mds")],
)
def test_a_folder_without_tars_says_what_it_has(tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"there is no tar, but {name}.*{said}"):
        TarSource(str(tmp_path)).shards()
