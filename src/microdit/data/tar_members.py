"""Walking a tar strictly: a shard that ends early or holds a damaged header is an error, not a shorter shard."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = 512


class TarError(ValueError):
    """A tar cannot be read to its end; the message names the file, the byte and the cause."""


class TarMember(NamedTuple):
    """A regular file in a tar: its name without leading `./`, where its bytes start, and how many they are."""

    name: str
    offset: int
    length: int


def tar_members(path: Path) -> Iterator[TarMember]:
    """Every regular file of an uncompressed tar in order (ustar, GNU long names, PAX). TarError at the first damage."""
    end = path.stat().st_size
    position = 0
    try:
        # Not "r:*": a compressed tar has no positions to read at.
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= position or member.offset_data + member.size > end:
                    raise TarError(f"{path}: cut short or damaged in {member.name!r} at byte {member.offset}")
                position = tar.offset
                if member.isreg() and not member.issparse():
                    yield TarMember(member.name.removeprefix("./"), member.offset_data, member.size)
            # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):
                raise TarError(f"{path}: cut short, or a damaged header at byte {tar.offset}")
    except TarError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError) as error:
        raise TarError(f"{path}: no readable uncompressed tar after byte {position} ({error})") from error
