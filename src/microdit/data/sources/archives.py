"""Tars and zips, packed or not: which files are in one, and the bytes of each."""

import bz2
import gzip
import io
import lzma
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from microdit.data.shards.tars import LONGEST_NAME, TarError, TarMember, tar_members
from microdit.files import room_for, size_of_file

ZSTANDARD, ZIP = b"\x28\xb5\x2f\xfd", b"PK\x03\x04"
MOST_TIMES, ALWAYS_ROOM, PIECE = 100, 1 << 26, 1 << 20  # of its size, or bytes, may a file unpack to; bytes at a time


class PackedError(ValueError):
    """A packed file cannot be unpacked; the message says why, and what to do."""


def open_zstandard(path: Path, mode: str = "rb") -> BinaryIO:
    """A file that zstd has packed, open for reading. PackedError where the library for it is not installed."""
    try:
        from pyarrow import input_stream
    except ImportError as error:
        raise PackedError(
            "it is compressed with zstd: install the extra `tables`, or unpack it first (zstd -d)"
        ) from error
    return cast(BinaryIO, input_stream(str(path), compression="zstd"))


# What packed files begin with, and what reads them.
PACKED: Mapping[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    ZSTANDARD: open_zstandard,
}


@contextmanager
def unpacked(path: Path, folder: Path) -> Iterator[Path]:
    """A file without its compression for as long as the block runs, in a new folder in `folder`; one that has none, as
    it is. PackedError where it cannot be had, NoRoomError where the disk is full."""
    with path.open("rb") as file:
        start = file.read(8)
    opened = next((opener for magic, opener in PACKED.items() if start.startswith(magic)), None)
    if opened is None:
        yield path
        return
    room = max(ALWAYS_ROOM, MOST_TIMES * size_of_file(path))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=folder) as mine:
        plain = Path(mine) / "file"
        with room_for(plain), plain.open("wb") as target, opened(path, "rb") as source:
            try:
                while piece := source.read(PIECE):
                    room -= len(piece)
                    if room < 0:
                        raise PackedError(f"it is compressed, and unpacks to over {MOST_TIMES} times its size")
                    target.write(piece)
            except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                target.flush()  # what came before is read; the end that is lacking is told as that of any tar
        yield plain


class Archive(Protocol):
    """An open tar or zip."""

    def members(self) -> Iterator[TarMember]:
        """Every file in it, in order. TarError at the first damage."""
        ...

    def content(self, member: TarMember) -> bytes:
        """The bytes of one of them. TarError where they cannot be read."""
        ...


class Tar:
    """A tar without compression."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file

    def members(self) -> Iterator[TarMember]:
        return tar_members(self.path)

    def content(self, member: TarMember) -> bytes:
        return os.pread(self.file.fileno(), member.length, member.offset)

    def lines_of(self, member: TarMember) -> io.TextIOWrapper:
        """A file in it, however large, as text to be read line by line."""
        return io.TextIOWrapper(
            io.BufferedReader(Part(self.file, member)), encoding="utf-8-sig", errors="surrogateescape"
        )


class Part(io.RawIOBase):
    """The bytes of a file in an open tar, one after the other."""

    def __init__(self, file: BinaryIO, member: TarMember) -> None:
        self.descriptor, self.place, self.end = file.fileno(), member.offset, member.offset + member.length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fills the buffer as far as there is something left."""
        found = os.pread(self.descriptor, min(len(buffer), self.end - self.place), self.place)
        buffer[: len(found)] = found
        self.place += len(found)
        return len(found)


class Zip:
    """A zip; the `offset` of a member is its number in the directory."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.room = path, max(ALWAYS_ROOM, MOST_TIMES * size_of_file(path))
        try:
            self.archive = zipfile.ZipFile(file)
        except DAMAGED as error:
            raise TarError(f"{path}: no readable zip ({error})") from error

    def members(self) -> Iterator[TarMember]:
        entries = self.archive.infolist()
        if sum(entry.file_size for entry in entries) > self.room:
            raise TarError(f"{self.path}: it unpacks to over {MOST_TIMES} times its size")
        for number, entry in enumerate(entries):
            if len(entry.filename) > LONGEST_NAME:
                raise TarError(f"{self.path}: a name of {len(entry.filename):,} characters")
            if not entry.is_dir():
                yield TarMember(entry.filename.removeprefix("./"), number, entry.file_size)

    def content(self, member: TarMember) -> bytes:
        entry = self.archive.infolist()[member.offset]
        if entry.compress_type not in UNPACKED_IN_PARTS:
            raise TarError(
                f"{self.path}: {member.name!r} is packed by bzip2, LZMA or another way that has no end but its own; "
                "unpack the zip, and pack it anew as zip does"
            )
        try:
            with self.archive.open(entry) as file:
                return file.read(entry.file_size)  # and no more: without a number all is unpacked before it is counted
        except DAMAGED as error:
            raise TarError(f"{self.path}: {member.name!r} cannot be unpacked ({error})") from error


UNPACKED_IN_PARTS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)


@contextmanager
def opened(path: Path, folder: Path) -> Iterator[Archive]:
    """A tar, also a compressed one, which is unpacked into `folder`, or a zip. PackedError, NoRoomError as `unpacked`,
    TarError for a zip whose directory cannot be read."""
    with path.open("rb") as file:
        if file.read(len(ZIP)) == ZIP:
            yield Zip(path, file)
            return
    with unpacked(path, folder) as plain, plain.open("rb") as file:
        yield Tar(plain, file)
