"""Settings of a run from elsewhere may hold anything anywhere: they are meant, or refused in a sentence of ours that
names the file, before anything is made."""

import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from anything import OTHERS, places, replaced
from omegaconf import OmegaConf
from rich.console import Console

from microdit.build import SettingsError
from microdit.checkpoints.reading import CheckpointError
from microdit.commands.compose import check_chain
from microdit.commands.resumed import changed_values, check_saved
from microdit.commands.train import launch
from microdit.pipeline import LatentDiffusion, write_settings
from microdit.training.run import network_settings

CASES = int(os.environ.get("MICRODIT_DAMAGES", "160"))
"""How many settings are replaced; MICRODIT_DAMAGES=20000 tries all of them."""


def some_of(settings: dict) -> list[tuple[tuple, Any]]:
    every = [(place, value) for place in places(settings) for value in OTHERS]
    return random.Random(20).sample(every, min(CASES, len(every)))


@pytest.fixture(autouse=True)
def without_training(monkeypatch) -> None:
    """A run that would begin ends there, well."""

    def train(*args: Any) -> None:
        sys.exit()

    monkeypatch.setattr("microdit.commands.train.train", train)
    monkeypatch.setattr("microdit.commands.train.write_config", lambda *args: None)


def resume_a_run(saved: dict, file: Path) -> None:
    """What resuming a run does with its config.yaml before training."""
    check_saved(saved, file)
    now = OmegaConf.create({"paths": {"data_root": saved["paths"]["data_root"]}, "reading": {"cache_folder": None}})
    config, choices = changed_values(saved, ["resume=theirs"], now, file.parent)
    with pytest.raises(SystemExit):
        launch({**config, "resume": "theirs"}, choices, file.parent, Console(quiet=True))


def refused(resume: Callable[[dict, Path], None], saved: dict, file: Path) -> int:
    """How many of the changed settings are refused, each by a sentence of ours that names the file."""
    told = []
    for place, value in some_of(saved):
        try:
            resume(replaced(saved, place, value), file)
        except SettingsError as error:
            told.append(str(error))
        except Exception as error:
            raise AssertionError(f"{place}: {value!r}"[:200]) from error
    assert [each for each in told if file.name not in each] == []
    return len(told)


def test_a_config_with_anything_anywhere_is_meant_or_refused(run_settings, tmp_path):
    settings = run_settings("metrics=shapes_full", "optimizer=muon", "logger=wandb")
    saved = {**settings.config, "choices": settings.choices}
    resume_a_run(saved, tmp_path / "config.yaml")
    assert refused(resume_a_run, saved, tmp_path / "config.yaml") > CASES / 2


def test_stages_with_anything_anywhere_are_meant_or_refused(run_settings, tmp_path):
    settings = run_settings()
    stage = {"name": "a", "config": settings.config, "choices": settings.choices}
    saved = {"expected_mfu": 0.2, "stages": [stage]}
    check_chain(saved, tmp_path / "stages.yaml")
    assert refused(check_chain, saved, tmp_path / "stages.yaml") > CASES / 2
    for stages in (
        [],
        [[]],
        {},
        None,
        [stage | {"name": "../a"}],
        [stage | {"name": "$HOME"}],
        [stage | {"config": {}}],
    ):
        with pytest.raises(SettingsError, match=r"stages\.yaml"):
            check_chain({**saved, "stages": stages}, tmp_path / "stages.yaml")


def test_a_pipeline_with_anything_anywhere_is_meant_or_refused(run_settings, tmp_path):
    def load(saved: dict, file: Path) -> None:
        write_settings(saved, file.parent)
        with pytest.raises(CheckpointError, match="before its first checkpoint"):
            LatentDiffusion.load(file.parent)

    saved = network_settings(run_settings())
    load(saved, tmp_path / "pipeline.json")
    assert refused(load, saved, tmp_path / "pipeline.json") > CASES / 2


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.dim=8192", r"make a network of .* bytes, and .*step_0000003\.ckpt has"),
        ("resolution_stage.global_batch_size=1000000", "a step takes .* GB, and this machine has"),
    ],
)
def test_what_is_larger_than_file_or_machine_is_refused_before_it_is_made(run_settings, tmp_path, override, told):
    settings = run_settings(override)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_0000003.ckpt").write_bytes(bytes(10**7))
    with pytest.raises(SettingsError, match=told):
        resume_a_run({**settings.config, "choices": settings.choices}, tmp_path / "config.yaml")


@pytest.mark.parametrize("group", ["metrics", "logger"])
@pytest.mark.parametrize("name", ["/elsewhere/picture", "../../picture", "a/b", "..", "a.b", "", "x" * 300, "a\0b"])
def test_no_name_of_a_metric_or_logger_leads_elsewhere(run_settings, tmp_path, group, name):
    settings = run_settings("metrics=shapes", "logger=tensorboard")
    one = next(iter(settings.config[group].values()))
    saved = {**settings.config, group: {name: one}, "choices": settings.choices}
    with pytest.raises(SettingsError, match=rf"config\.yaml: {group}\..* is no name"):
        check_saved(saved, tmp_path / "config.yaml")
    check_saved({**saved, group: {"fid_5k-2": one}}, tmp_path / "config.yaml")


def test_data_is_not_kept_where_a_runs_choices_lead(run_settings, tmp_path):
    saved = {**run_settings().config, "choices": {"autoencoder": "a/../../../b", "text_encoder": "words"}}
    with pytest.raises(SettingsError, match="lead elsewhere"):
        check_saved(saved, tmp_path / "config.yaml")
