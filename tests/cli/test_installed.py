"""The package as `pip install` leaves it: without this checkout, from a folder that knows nothing of it."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from cli_processes import ROOT, SMALL, environment

SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
UV = Path(sys.executable).with_name("uv")


def uv(*arguments: str) -> None:
    """Runs uv without a network; build tools are those of the environment that the tests run in."""
    paths = [sysconfig.get_path("purelib"), os.environ.get("PYTHONPATH")]
    done = subprocess.run(
        [UV, *arguments, "--offline", "--quiet"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    """A wheel of this checkout, and one of the source archive of it, in which no link is left."""
    found = {}
    for made_of, only in {"checkout": ["--wheel"], "archive": []}.items():
        folder = tmp_path_factory.mktemp(made_of)
        how = ["--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder)]
        uv("build", *only, *how, str(ROOT))
        (found[made_of],) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheels, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    uv("pip", "install", "--no-deps", "--python", sys.executable, "--target", str(folder), str(wheels["checkout"]))
    return folder


def run_installed(installed: Path, command: str, *arguments: str, folder: Path) -> str:
    surroundings = {**environment(), "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, str(installed / "bin" / command), *arguments],
        cwd=folder,
        env=surroundings,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_script_has_a_command_of_its_name():
    commands = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert commands == {f"microdit-{name}": f"microdit.commands.entry_points:{name}" for name in SCRIPTS}


@pytest.mark.parametrize("made_of", ["checkout", "archive"])
def test_a_wheel_holds_every_choice_and_what_comes_with_the_package(wheels, made_of):
    with zipfile.ZipFile(wheels[made_of]) as content:
        for top in ("conf", "src/microdit/pretrained", "src/microdit/kernels/cpu"):
            files = [path for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
            assert len(files) > 3
            for path in files:
                inside = path.relative_to(ROOT / "src" if top.startswith("src") else ROOT)
                name = str(inside) if top.startswith("src") else f"microdit/{inside}"
                assert content.read(name) == path.read_bytes()


def test_a_run_in_a_foreign_folder_keeps_its_files_there_and_tells_its_version(installed, tmp_path):
    # A repository of somebody else's, whose commit is none of ours.
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    run_installed(
        installed, "microdit-train", *SMALL, "trainer.max_steps=2", "hydra.run.dir=runs/first", folder=tmp_path
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".git", "data", "runs"]
    record = json.loads((tmp_path / "runs" / "first" / "result.json").read_text())
    (here,) = distributions(name="microdit", path=[str(installed)])
    assert record["status"] == "finished"
    assert record["commit"] == here.version != "0.0.0"


@pytest.mark.parametrize("name", ["export", "report"])
def test_commands_without_a_configuration_start_too(installed, tmp_path, name):
    assert "usage: microdit-" in run_installed(installed, f"microdit-{name}", "--help", folder=tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_editable_installation_reads_the_files_that_one_edits(tmp_path):
    uv("venv", "--python", sys.executable, str(tmp_path / "venv"))
    python = tmp_path / "venv" / "bin" / "python"
    uv("pip", "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT), "--python", str(python))
    assert {path.name for path in python.parent.glob("microdit-*")} == {f"microdit-{name}" for name in SCRIPTS}
    program = "from importlib.resources import files; print((files('microdit.conf') / 'config.yaml').resolve())"
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = subprocess.run([python, "-c", program], env=surroundings, capture_output=True, text=True, check=True)
    assert Path(told.stdout.strip()) == ROOT / "conf" / "config.yaml"
