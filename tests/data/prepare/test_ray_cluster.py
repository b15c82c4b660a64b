"""A real Ray on this machine: two workers make the same bytes as one process does, also where one of them is killed."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compositions import plain
from PIL import Image
from preparing import DeadlySource, encoders_on

from microdit.commands.prepare import run_preparation
from microdit.data.prepare.convert import prepare
from microdit.data.prepare.launchers import WorkerLostError
from microdit.data.prepare.plan import Recipe
from microdit.data.prepare.ray_cluster import RayCluster, imported, start
from microdit.data.sources.captioned import Source
from microdit.data.sources.folder import FolderSource
from microdit.kinds import SettingsError
from microdit.progress import Report, silent

pytest.importorskip("ray", reason="the extra `ray` is not installed")
RECIPE = Recipe([16], batch_size=3)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray with two CPUs, for this machine alone."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # the paths of sockets may be 107 characters long
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))  # of the workers
        patch.setattr("microdit.data.prepare.ray_cluster.cores", lambda: 2)
        ray = imported()
        try:
            start(ray, None)
            yield ray
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures, which are six input shards."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(30):
        Image.fromarray(np.full((20, 24, 3), 8 * number, np.uint8)).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"number {number}")
    return folder


def run(source: Source, root: Path, launcher: RayCluster | None, progress: Report = silent) -> dict[str, str]:
    """The SHA-256 of every shard and of the index."""

    def by(make: Any) -> dict[str, str]:
        summary = prepare(source, root / "mine/train", encoders_on("cpu"), RECIPE, progress=progress, make=make)
        assert summary.written == summary.found == 30
        files = [*sorted(summary.folder.glob("*.tar")), summary.folder / "index.npz", summary.folder / "dataset.json"]
        return {path.name: sha256(path.read_bytes()).hexdigest() for path in files}

    if launcher is None:
        return by(None)
    with launcher.workers(encoders_on, "cpu", None) as make:
        return by(make)


@pytest.fixture(scope="module")
def made_here(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What one process makes of them."""
    return run(FolderSource(str(pictures), shard_size=5), tmp_path_factory.mktemp("here"), None)


def test_two_workers_make_the_same_bytes_also_where_one_is_killed(
    ray: Any, pictures: Path, made_here: dict[str, str], tmp_path: Path
) -> None:
    told: list[tuple[float, float, str]] = []
    launcher = RayCluster(workers=2, dollars_per_worker_hour=3600)
    source = DeadlySource(pictures, tmp_path / "mark")
    assert run(source, tmp_path, launcher, lambda *now: told.append(now)) == made_here
    assert (tmp_path / "mark").exists()
    done, total, text = told[-2]  # the last line is of whoever called
    assert (done, total) == (6, 6)
    assert "30 images" in text or "28 images" in text
    assert "of 2 workers, 1 failed and begun again, $" in text


def test_the_command_line_does_the_same_with_either_launcher(ray: Any, pictures: Path, tmp_path: Path) -> None:
    made = []
    for launcher in (["launcher=local"], ["launcher=ray", "launcher.workers=1", "launcher.decode_on=cluster"]):
        root = tmp_path / launcher[0]
        overrides = ("source=folder", f"source.path={pictures}", "source.shard_size=5", "resolutions_px=[16]")
        more = ("near_duplicates=0", "held_out=0.3", "device=cpu", f'paths.data_root="{root}"')
        told = run_preparation(plain(*overrides, *more, *launcher, config="prepare"), "pixel", "words")
        assert "30 found" not in told
        made.append({str(tar.relative_to(root)): sha256(tar.read_bytes()).hexdigest() for tar in root.rglob("*.tar")})
    assert made[0] == made[1]
    assert len(made[0]) == 12


def test_a_shard_that_ends_its_worker_as_often_as_it_was_tried_ends_the_command(
    ray: Any, pictures: Path, tmp_path: Path
) -> None:
    source = DeadlySource(pictures, tmp_path / "mark", deadly=0, always=True)
    with pytest.raises(WorkerLostError, match="ended while it made shard 00000, 1 time "):
        run(source, tmp_path, RayCluster(workers=1, attempts=1))


def test_what_a_worker_cannot_open_is_told_as_here(ray: Any, pictures: Path, tmp_path: Path) -> None:
    launcher = RayCluster(workers=1, attempts=1)
    with (
        pytest.raises(FileNotFoundError, match="there are no weights"),
        launcher.workers(lambda device: encoders_on("nowhere"), "cpu", None) as make,
    ):
        prepare(FolderSource(str(pictures)), tmp_path / "mine/train", encoders_on("cpu"), RECIPE, make=make)


@pytest.mark.parametrize(
    ("device", "said"),
    [("cuda", "the cluster has 2 CPUs and no GPU; set device=cpu"), ("cuda:1", "for all of a cluster's: device=cuda")],
)
def test_devices_that_a_cluster_has_not_are_refused_at_once(ray: Any, device: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said), RayCluster().workers(encoders_on, device, None):
        pytest.fail("there is no such device")
