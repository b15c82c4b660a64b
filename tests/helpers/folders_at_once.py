"""What processes of their own do with folders that others want too."""

from pathlib import Path
from typing import Any

from microdit.files import new_folder, only_writer


def take_folders(root: Path, count: int) -> list[str]:
    """Folders that nobody else has."""
    return [str(new_folder(root / "2026-11-27-run")) for _ in range(count)]


def hold(folder: Path, held: Any, release: Any) -> None:
    """Writes into a folder, until `release` is set or a minute is over."""
    with only_writer(folder, "checkpoints"):
        held.set()
        release.wait(60)
