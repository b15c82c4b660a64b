"""What is committed below experiments/: tables are what `report.py` makes of the results, layouts can be read."""

import shutil
from pathlib import Path

import pytest
import yaml

from microdit.reports.layout import LAYOUT_FILE, read_layout
from microdit.reports.report import RESULTS_FILE, remake
from microdit.reports.results import write_csv

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
    written = remake(again)
    for path in written:
        assert (committed / path.name).is_file(), f"python report.py experiments/{name}"
        if path.suffix != ".png":
            assert path.read_text() == (committed / path.name).read_text(), f"python report.py experiments/{name}"


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name not in REPORTED])
def test_a_table_without_results_yet_takes_its_place_in_the_readme_when_runs_have_finished(name, tmp_path):
    folder = Path(shutil.copytree(EXPERIMENTS / name, tmp_path / name))
    given = yaml.safe_load((folder / LAYOUT_FILE).read_text())
    runs = []
    for place, key in enumerate(given["expected"]):
        told = zip((row["column"] for row in given["rows"]), key if isinstance(key, list) else [key], strict=True)
        run = {"run": f"{name}/{place}", "status": "finished", "error": "", "seed": "1", **dict(told)}
        runs.append({**run, "validation/loss": f"0.{1234 + place}", "total_flops": "1e12"})
    write_csv(runs, folder / RESULTS_FILE)
    remake(folder)
    readme, committed = (folder / "README.md").read_text(), (EXPERIMENTS / name / "README.md").read_text()
    assert readme.startswith(committed.partition("<!-- table -->")[0])
    assert readme.endswith(committed.partition("<!-- /table -->")[2])
    for place in range(len(runs)):
        assert f"| 0.{1234 + place} |" in readme


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
