"""Files that several processes may want to make: each appears once, and whole, whoever is killed on the way."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoomError(OSError):
    """A file does not fit on its disk; the message names it and says what to do."""


@contextmanager
def room_for(path: Path) -> Iterator[None]:
    """While the block runs, the system's word that a disk is full becomes a NoRoomError that names `path`."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise NoRoomError(
            f"{path} cannot be written: {error.strerror}. Make room and run the same command again, what is complete "
            "is kept"
        ) from error


@contextmanager
def alone_in(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """While the block runs no other thread or process is in one for the same folder or file, opened with these `flags`.

    The lock is on the folder or file itself, so none is left behind, and it ends with its process.
    """
    descriptor = os.open(path, flags, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        # Said aloud: a process that was forked meanwhile shares the lock, and closing the file here would not end it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


@contextmanager
def claim(path: Path) -> Iterator[Path | None]:
    """The temporary path to write `path` under; it gets its name when the block ends well. None when `path` is there.

    A second process waits for the first, and then finds the file there or, if the first was killed, starts it anew.
    NoRoomError where the disk is full.
    """
    partial = path.with_name(f".{path.name}.part")
    if path.exists():
        yield None
        return
    with alone_in(partial, os.O_RDWR | os.O_CREAT) as descriptor, room_for(path):
        if path.exists():
            # Written by the one we waited for; what lies under the temporary name now is empty.
            partial.unlink(missing_ok=True)
            yield None
            return
        os.ftruncate(descriptor, 0)
        yield partial
        os.fsync(descriptor)
        os.replace(partial, path)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is never seen half written. Two processes must not write the same file at once.

    What is no UTF-8 in the name of a file is written as an escape, which JSON reads back as it was.
    """
    partial = path.with_name(f".{path.name}.part")
    with room_for(path):
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(path)
