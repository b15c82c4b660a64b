"""What is committed below experiments/: tables are what `report.py` makes of the results, layouts can be read."""

import shutil
from pathlib import Path

import pytest
import yaml

from microdit.analysis.layout import LAYOUT_FILE, read_layout
from microdit.analysis.report import RESULTS_FILE, remake

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
REPORTED = sorted(path.parent.name for path in EXPERIMENTS.glob(f"*/{RESULTS_FILE}"))
LAYOUTS = sorted(path.parent.name for path in EXPERIMENTS.glob(f"*/{LAYOUT_FILE}"))


@pytest.mark.parametrize("name", REPORTED)
def test_committed_tables_are_what_the_command_gives_without_the_runs(name, tmp_path):
    committed, again = EXPERIMENTS / name, tmp_path / name
    again.mkdir()
    for file in (RESULTS_FILE, "curves.csv", LAYOUT_FILE, "README.md"):
        if (committed / file).is_file():
            shutil.copy(committed / file, again / file)
    written, _ = remake(again)
    for path in written:
        assert (committed / path.name).is_file(), f"python report.py experiments/{name}"
        if path.suffix != ".png":
            assert path.read_text() == (committed / path.name).read_text(), f"python report.py experiments/{name}"


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_can_be_read(name):
    given = yaml.safe_load((EXPERIMENTS / name / LAYOUT_FILE).read_text())
    named = [
        one if isinstance(one, str) else one["column"] for part in ("rows", "columns") for one in given.get(part, [])
    ]
    run = {"run": "a/b", "status": "failed", "error": "", "seed": "1", **dict.fromkeys(named, "")}
    layout = read_layout(EXPERIMENTS / name, [run])
    assert layout.title
    for key in layout.expected:
        assert all(value in part.labels for part, value in zip(layout.rows, key, strict=True) if part.labels)
