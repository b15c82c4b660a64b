"""What lies below a folder is told whole: nobody's files vanish because nobody looked there."""

import os
from pathlib import Path
from typing import Any

import pytest

from microdit.data.sources.below import hidden, lying_below, state_of


def written(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def told(root: Path) -> dict[str, str]:
    """Each name with what is told of it: "read", or the reason."""
    return {found.name: found.ignored or found.unread or "read" for found in lying_below(root)}


def test_files_are_told_by_name_and_once(tmp_path: Path) -> None:
    written(tmp_path, "b", "a/c", "a/b/d")
    assert list(told(tmp_path)) == ["b", "a/c", "a/b/d"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path: Path) -> None:
    written(tmp_path, "here/a", "elsewhere/b")
    (tmp_path / "here/link").symlink_to(tmp_path / "elsewhere")
    assert told(tmp_path / "here") == {"a": "read", "link/b": "read"}


@pytest.mark.parametrize("target", [".", "..", "inner", "../elsewhere"])
def test_no_folder_is_read_twice_nor_for_ever_and_the_link_that_would_is_told(tmp_path: Path, target: str) -> None:
    root = written(tmp_path / "root", "a", "inner/b")
    written(tmp_path, "elsewhere/c")
    (root / "first").symlink_to(tmp_path / "elsewhere")
    (root / "second").symlink_to(root / target)
    found = told(root)
    assert [found[name] for name in ("a", "inner/b", "first/c")] == ["read"] * 3
    repeated = [name for name, reason in found.items() if reason != "read"]
    assert repeated
    assert all("which is read" in found[name] for name in repeated)


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/a-checkpoint.jpg",
        ".Trash-1000/files/a.jpg",
        "deep/.thumbs/a.jpg",
        "__MACOSX/._a.jpg",
        "@eaDir/a.jpg/SYNOPHOTO.jpg",
        "$RECYCLE.BIN/a.jpg",
        "._a.jpg",
        ".DS_Store",
        "Thumbs.db",
        "desktop.ini",
    ],
)
def test_what_is_hidden_or_left_behind_is_told_and_not_read(tmp_path: Path, name: str) -> None:
    found = told(written(tmp_path, name, "sub.v1/deep.er/a.jpg"))
    assert found["sub.v1/deep.er/a.jpg"] == "read"
    assert "hidden" in found[name]


@pytest.mark.parametrize("name", ["a.jpg", "-dash", "a.b/c.d", "./a", "../a"])
def test_other_names_are_not_hidden(name: str) -> None:
    assert hidden(name) is None


def test_a_folder_that_may_not_be_looked_into_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "a", "closed/b")
    scan = os.scandir

    def refusing(path: Any) -> Any:
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    assert told(tmp_path) == {"a": "read", "closed": "the folder cannot be looked into: Permission denied"}


def test_a_machine_without_files_to_open_is_not_taken_for_a_closed_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Any) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(OSError, match="Too many"):
        told(tmp_path)


def test_the_state_of_files_changes_with_each_of_them(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b", "\0no name")]
    written(tmp_path, "a")
    states = [state_of(paths), state_of(paths)]
    assert states[0] == states[1]
    (tmp_path / "b").write_text("came")
    states.append(state_of(paths))
    (tmp_path / "a").write_text("longer")
    states.append(state_of(paths))
    os.utime(tmp_path / "a", ns=(1, 1))
    states.append(state_of(paths))
    (tmp_path / "b").unlink()
    states.append(state_of(paths))
    assert len(set(states[1:])) == 5
