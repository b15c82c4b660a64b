"""Files that several processes may want to make: each appears once, and whole, whoever is killed on the way."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(descriptor: int) -> Iterator[None]:
    """While the block runs no other thread or process is in one for the same file; the lock ends with its process."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        # Said aloud: a process that was forked meanwhile shares the lock, and closing the file here would not end it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextmanager
def claim(path: Path) -> Iterator[Path | None]:
    """The temporary path to write `path` under; it gets its name when the block ends well. None when `path` is there.

    A second process waits for the first, and then finds the file there or, if the first was killed, starts it anew.
    """
    partial = path.with_name(f".{path.name}.part")
    if path.exists():
        yield None
        return
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        with locked(descriptor):
            if path.exists():
                # Written by the one we waited for; what lies under the temporary name now is empty.
                partial.unlink(missing_ok=True)
                yield None
                return
            os.ftruncate(descriptor, 0)
            yield partial
            os.fsync(descriptor)
            os.replace(partial, path)
    finally:
        os.close(descriptor)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While the block runs no other process is in such a block for the same folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with locked(descriptor):
            yield
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that it is never seen half written. Two processes must not write the same file at once."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
