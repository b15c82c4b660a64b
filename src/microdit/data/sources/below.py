"""What lies below a folder, nothing left out: files in order, and why a file or a folder is not looked at."""

import os
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from microdit.data.sources.captioned import Ignored, Unreadable
from microdit.files import is_refusal

# What systems and programs leave behind, beside everything whose name begins with a dot.
LEFT_BEHIND = frozenset(
    ("__macosx", "@eadir", "$recycle.bin", "recycler", "#recycle", "system volume information", "lost+found")
)
HIDDEN_FILES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db"))


class Lying(NamedTuple):
    """A file, or a folder that is not looked into: its path from where the search began. `ignored`: why it is none of
    the data. `unread`: why the system did not let us look."""

    name: str
    ignored: str | None = None
    unread: str | None = None


def hidden(name: str) -> str | None:
    """Why what has this name, with `/` between folders, is none of the data: it is hidden, or was left behind by a
    system. None where it is neither."""
    *folders, file = name.split("/")
    for folder in folders:
        if folder.lower() in LEFT_BEHIND or (folder.startswith(".") and folder not in (".", "..")):
            return f"in the hidden or left-behind folder {folder}"
    if file.startswith(".") or file.lower() in HIDDEN_FILES | LEFT_BEHIND:
        return "a hidden file, or one that a system left behind"
    return None


def lying_below(root: Path) -> Iterator[Lying]:
    """Every file below a folder, also behind links to folders elsewhere; each folder once, in the order of names.

    OSError where `root` itself cannot be listed, or there are no more files to open.
    """
    place = os.path.realpath(root)
    seen, waiting = {place}, [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(root / inside) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            if not inside or (is_refusal(error) and not isinstance(error, PermissionError)):
                raise
            yield Lying(inside, unread=f"the folder cannot be looked into: {error.strerror}")
            continue
        folders = []
        for entry in entries:
            name = f"{inside}/{entry.name}" if inside else entry.name
            if not entry.is_dir():
                yield Lying(name, ignored=hidden(name))
                continue
            real = os.path.realpath(entry.path)
            if entry.is_symlink() and hidden(f"{name}/x"):
                yield Lying(name, ignored="a hidden link to a folder")
            elif entry.is_symlink() and (real == place or real.startswith(f"{place}{os.sep}")):
                yield Lying(name, ignored=f"a link to {real}, which is read where it lies")
            elif real in seen:
                yield Lying(name, ignored=f"it leads to {real}, which is read already")
            else:
                seen.add(real)
                folders.append(name)
        waiting += reversed(folders)


def files_below(root: Path) -> tuple[list[str], list[Unreadable | Ignored]]:
    """The names of all files below a folder that may be data, in order, and what else lies there. OSError as
    `lying_below`."""
    files: list[str] = []
    others: list[Unreadable | Ignored] = []
    for name, ignored, unread in lying_below(root):
        if unread is not None:
            others.append(Unreadable(name, unread))
        elif ignored is not None:
            others.append(Ignored(name, ignored))
        else:
            files.append(name)
    return files, others


def state_of(paths: Sequence[Path]) -> str:
    """A name for the sizes and times of files, another one as soon as one of them changes, comes or goes."""
    state = blake2b(digest_size=12)
    for path in paths:
        try:
            found = path.stat()
            state.update(f"{found.st_size} {found.st_mtime_ns}|".encode())
        except (OSError, ValueError) as error:  # ValueError: no name that the system knows
            if is_refusal(error) and not isinstance(error, PermissionError):
                raise
            state.update(b"none|")
    return state.hexdigest()
