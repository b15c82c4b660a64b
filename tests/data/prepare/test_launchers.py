"""Whoever makes the shards, and in whatever order, and whoever is killed on the way: they have the same bytes."""

import io
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from preparing import DeadlySource, encoders_on

from microdit.data.prepare.convert import MakeShards, Work, make_here, prepare
from microdit.data.prepare.launchers import ThisMachine, WorkerLostError, devices_of, make_on
from microdit.data.prepare.plan import Recipe
from microdit.data.prepare.ray_cluster import RayCluster, RayMissingError
from microdit.data.sources.captioned import Source
from microdit.data.sources.folder import FolderSource
from microdit.progress import silent


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures, which are six input shards."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(30):
        file = io.BytesIO()
        Image.fromarray(np.full((20, 24, 3), 8 * number, np.uint8)).save(file, "png")
        (folder / f"{number:03d}.png").write_bytes(file.getvalue())
        (folder / f"{number:03d}.txt").write_text(f"number {number}")
    return folder


def run(source: Source, root: Path, make: MakeShards | None = None) -> dict[str, str]:
    """The SHA-256 of every file that a preparation leaves but for its plan."""
    recipe = Recipe([16], batch_size=3)
    summary = prepare(source, root / "mine/train", encoders_on("cpu"), recipe, make=make)
    assert summary.written == 30
    files = [path for path in sorted(summary.folder.rglob("*")) if path.is_file() and path.name != "plan.json"]
    return {str(path.relative_to(summary.folder)): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made_here(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process makes of them."""
    return run(FolderSource(str(pictures), shard_size=5), tmp_path_factory.mktemp("here"))


def test_the_order_of_shards_does_not_show_where_encoders_draw(
    pictures: Path, made_here: dict[str, str], tmp_path: Path
) -> None:
    def backwards(work: Work, numbers: object, progress: object) -> int:
        return make_here(encoders_on("cpu"), work, [5, 3, 4, 1, 2, 0], silent)

    before = torch.get_rng_state()
    assert run(FolderSource(str(pictures), shard_size=5), tmp_path, backwards) == made_here
    assert torch.equal(torch.get_rng_state(), before)
    assert len({made_here[f"{number:05d}.tar"] for number in range(6)}) == 6


def test_a_process_for_each_device_makes_the_same_also_after_one_was_killed(
    pictures: Path, made_here: dict[str, str], tmp_path: Path
) -> None:
    source = DeadlySource(pictures, tmp_path / "mark")

    def on_two(work: Work, numbers: range, progress: object) -> int:
        return make_on(["cpu", "cpu"], encoders_on, work, numbers, silent)

    with pytest.raises(
        WorkerLostError, match=r"prepared on cpu ended early \(exit code -9.*Run the same command again"
    ):
        run(source, tmp_path, on_two)
    assert run(source, tmp_path, on_two) == made_here


def test_what_goes_wrong_in_another_process_is_told_here(pictures: Path, tmp_path: Path) -> None:
    work = Work(FolderSource(str(pictures)), tmp_path, Recipe([16]))
    with pytest.raises(FileNotFoundError, match="there are no weights"):
        make_on(["nowhere"], encoders_on, work, [0], silent)


@pytest.mark.parametrize(
    ("device", "gpus", "meant"),
    [
        (None, 0, ["cpu"]),
        (None, 2, ["cuda:0", "cuda:1"]),
        ("cuda", 2, ["cuda:0", "cuda:1"]),
        ("cuda", 0, ["cuda"]),  # which is refused when it is used
        ("cuda:1", 2, ["cuda:1"]),
        ("cpu", 2, ["cpu"]),
    ],
)
def test_all_gpus_of_the_machine_are_used_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str | None, gpus: int, meant: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert devices_of(device) == meant


def test_weights_are_missed_before_any_work() -> None:
    with pytest.raises(FileNotFoundError), ThisMachine().workers(encoders_on, "nowhere", None):
        pytest.fail("there is nothing to work with")


def test_without_the_extra_ray_the_way_to_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(RayMissingError, match=r"pip install 'microdit\[ray\]'"),
        RayCluster().workers(encoders_on, None, None),
    ):
        pytest.fail("there is no Ray")
