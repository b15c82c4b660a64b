"""The folders of experiments/: each command composes, each row is an experiment file, and none is left out."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from compositions import plain
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from microdit.training.settings import training_settings

ROOT = Path(__file__).parents[2]
FOLDERS = sorted(
    path.parent for path in (ROOT / "experiments").glob("*/report.yaml") if "choice/experiment" in path.read_text()
)
EXPERIMENTS = {path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml")}
OF_SCORED_PICTURES = {"quality"}  # which the embedded shapes are not
BORROWED = {"runs/headline/*-deferred-p75": "deferred_mask_75", "runs/headline/*-naive-p75": "naive_mask_75"}
"""Runs of the headline that other tables take rows from."""


def table_rows(folder: Path) -> list[str]:
    """The experiments that a table is about, by the rows it expects."""
    layout = yaml.safe_load((folder / "report.yaml").read_text())
    keys = [key["column"] if isinstance(key, dict) else key for key in layout["rows"]]
    place = keys.index("choice/experiment")
    return [row[place] if isinstance(row, list) else row for row in layout.get("expected", [])]


def commands(folder: Path, script: str) -> list[list[str]]:
    """The arguments of each `python SCRIPT` in the README's commands."""
    (block,) = re.findall(r"^## The command\n```\n(.*?)```", (folder / "README.md").read_text(), re.M | re.S)
    lines = block.replace("\\\n", "").splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith(f"python {script}")]


def borrowed(folder: Path) -> list[str]:
    """The experiments whose runs the report takes from the headline."""
    (arguments,) = commands(folder, "report.py")
    return [] if folder.name == "headline" else [BORROWED[path] for path in arguments if "headline" in path]


def first(override: Override) -> str:
    """An override as one of a sweep's jobs has it."""
    text = next(override.sweep_string_iterator()) if override.is_sweep_override() else override.get_value_string()
    return f"{override.get_key_element()}={text.replace('$seed', '1')}"


def trained(folder: Path) -> list[tuple[str, list[str]]]:
    """(experiment, the other overrides) of every run of the commands; the seeds are those of one."""
    runs = []
    for command in commands(folder, "train.py"):
        parsed = OverridesParser.create().parse_overrides([part for part in command if part != "-m"])
        others = [first(part) for part in parsed if not part.key_or_group.startswith(("experiment", "hydra."))]
        (experiments,) = [part for part in parsed if part.key_or_group == "experiment"]
        swept = experiments.sweep_string_iterator() if experiments.is_sweep_override() else [experiments.value()]
        runs += [(str(name), others) for name in swept]
    return runs


def test_there_are_tables_for_all_experiments():
    assert {row for folder in FOLDERS for row in table_rows(folder)} == EXPERIMENTS - OF_SCORED_PICTURES


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_command_makes_the_rows_of_the_table_and_composes(folder):
    runs = trained(folder)
    assert {name for name, _ in runs} | {*borrowed(folder)} == {*table_rows(folder)}
    for experiment, others in runs[:2]:  # the others differ in the experiment only
        assert training_settings(plain("name=x", f"+experiment={experiment}", *others), Path("run"), {})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_folder_says_claim_command_findings_and_limits(folder):
    headings = re.findall(r"^## (.*)$", (folder / "README.md").read_text(), re.M)
    assert headings[:4] == ["The claim", "The command", "What we found", "Limits"]
    assert f"python report.py experiments/{folder.name} runs/{folder.name}" in (folder / "README.md").read_text()
