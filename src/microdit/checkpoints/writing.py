"""Writing checkpoints so that a name never stands for half of one."""

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from microdit.checkpoints.reading import TO_GO_ON, read_checkpoint
from microdit.files import partial_name


class CheckpointFiles(CheckpointIO):
    """One file a checkpoint, for one process and DDP.

    A failure to write is kept in `failure` and not raised, because other ranks may be waiting: whoever asked for the
    checkpoint looks there.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        partial = partial_name(Path(path))
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            discard(partial)  # of a run that was killed while it wrote, or a link that waits there
            with partial.open("xb") as file:
                torch.save(checkpoint, file)
            complete(partial, Path(path))
        except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError where torch finds it
            self.failure = error
            discard(partial)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """The content, read safely, also of a checkpoint that FSDP wrote."""
        return read_checkpoint(Path(path), TO_GO_ON)

    def remove_checkpoint(self, path: Any) -> None:
        discard(Path(path))

    def settle(self) -> Exception | None:
        """What went wrong since it was last asked."""
        failure, self.failure = self.failure, None
        return failure


def complete(partial: Path, path: Path) -> None:
    """Gives a finished checkpoint, file or folder, its name, once its bytes are on the disk."""
    for written in [*partial.iterdir()] if partial.is_dir() else [partial]:
        flush(written)
    if path.exists():  # of an earlier try that this run repeats
        discard(path)
    partial.rename(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Removes a checkpoint, file or folder, if it is there."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir() and path.name.startswith("."):
        shutil.rmtree(path)
    elif path.is_dir():
        # Without its name at once: a folder that is half gone must not be taken for a checkpoint.
        doomed = path.with_name(f".{path.name}.discarded")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)


def discard_unfinished(folder: Path) -> None:
    """Removes what a run that was killed had begun to write or to remove; nobody may be writing there."""
    for pattern in (partial_name(Path("*")).name, ".*.discarded"):
        for left in folder.glob(pattern):
            discard(left)


def library_versions() -> dict[str, str]:
    """What a checkpoint was made with."""
    libraries = ("microdit", "torch", "lightning", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}
