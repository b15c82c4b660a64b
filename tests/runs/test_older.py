"""Runs that were made before the house was moved (commit 790d43a) resume, load, are judged and are compared today."""

import csv
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from anything import DELETED, OTHERS, places, replaced
from omegaconf import OmegaConf
from rich.console import Console

from microdit.checkpoints.export import export_weights
from microdit.checkpoints.reading import read_checkpoint
from microdit.commands.resumed import changed_values
from microdit.commands.train import launch
from microdit.kinds import SettingsError
from microdit.pipeline import LatentDiffusion
from microdit.reports.results import read_run
from microdit.runs.differences import settings_of
from microdit.runs.folder import checkpoint_path, read_config
from microdit.runs.older import todays_config, todays_pipeline
from microdit.sampling.settings import SamplingSettings
from microdit.training.settings import training_settings

HERE = Path(__file__).parent
HOW_IT_IS_HERE = OmegaConf.create({"paths": {"data_root": "data"}})
OLD = HERE / "before_the_house"
"""Eight steps with Muon, a moving average and experts, of which checkpoint 4 was kept, as after a kill."""


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)  # its data lies in ./data, and is drawn anew
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def losses(run: Path, name: str) -> dict[int, float]:
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


def test_it_goes_on_with_the_losses_of_the_run_that_was_never_interrupted(run):
    (run / "result.json").unlink()
    config, choices = changed_values(read_config(run), [f"resume={run}"], HOW_IT_IS_HERE, run)
    record = launch({**config, "resume": str(run)}, choices, run, Console(quiet=True))
    assert (record["status"], record["steps"]) == ("finished", 8)
    for name in ("train/loss", "train/learning_rate", "train/gradient_norm", "validation/loss"):
        assert losses(run, name) == pytest.approx(losses(OLD, name), rel=1e-4), name
    assert read_checkpoint(checkpoint_path(run, 8))["global_step"] == 8
    assert yaml.safe_load((run / "config.yaml").read_text())["optimizer"]["kinds"]["matrices"]["momentum"] == 0.95


def test_its_network_loads_and_draws(run):
    pipeline = LatentDiffusion.load(run)
    assert (pipeline.objective.sigma_data, type(pipeline.objective).__name__) == (0.5, "EDM")
    images = pipeline.generate(["a red circle"], num_inference_steps=2, seed=0)
    assert images.shape == (1, 3, 16, 16)
    assert images.isfinite().all()
    raw = LatentDiffusion.load(run, weights="raw")
    assert not all(torch.equal(a, b) for a, b in zip(raw.dit.parameters(), pipeline.dit.parameters(), strict=True))
    assert export_weights(run).is_file()


def test_it_is_drawn_as_its_grids_were(run):
    drawn = LatentDiffusion.load(run).sampling
    grids = yaml.safe_load((run / "config.yaml").read_text())["callbacks"]["samples"]
    assert drawn == SamplingSettings().told({name: grids[name] for name in asdict(drawn) if name in grids})
    assert drawn != SamplingSettings()


def test_it_stands_in_a_table_beside_runs_of_today():
    record = read_run(OLD)
    assert record["status"] == "finished"
    assert record["setting/masking._target_"] == "microdit.masking.deferred.Deferred"
    assert record["setting/optimizer.kinds.matrices.momentum"] == "0.95"


def test_every_setting_of_a_run_with_adamw_and_maskdit_is_accepted_under_its_present_name():
    saved = yaml.safe_load((HERE / "adamw_before_the_house.yaml").read_text())
    config = todays_config(saved)
    choices = config.pop("choices")
    settings = training_settings(config, Path("run"), choices)
    assert (settings.optimizer["_target_"], settings.optimizer["betas"]) == ("torch.optim.AdamW", [0.9, 0.99])
    assert settings.schedule.factor(7, 8) == 1.0  # it was constant
    assert "schedule" in saved["resolution_stage"], "what was read was changed in place"
    assert choices["objective"] == "edm"
    assert "latents" not in choices


@pytest.mark.parametrize("features", [None, {"_target_": "microdit.evaluation.clip.OpenClipFeatures", "name": "x"}])
def test_inception_was_what_fid_had_where_no_features_were_named(features):
    was = {"fid": {"features": features, "inception_weights": "inception.pth", "count": 5}}
    inception = {"_target_": "microdit.evaluation.features.InceptionFeatures", "resize": "torchmetrics"}
    now = todays_config({"metrics": was})["metrics"]
    assert now == {"fid": {"features": features or {**inception, "weights": "inception.pth"}, "count": 5}}


def test_what_is_of_today_stays_as_it_is(run):
    config = read_config(run)
    assert todays_config(config) == config
    assert settings_of(todays_config(config)) == settings_of(config)
    pipeline = todays_pipeline({"token_path": {"_target_": "microdit.model.token_path.Naive"}, "sigma_data": 0.8})
    assert pipeline["token_path"] == {"_target_": "microdit.masking.naive.Naive"}
    assert pipeline["objective"] == {"_target_": "microdit.objectives.edm.EDM", "sigma_data": 0.8}
    assert todays_pipeline(pipeline) == pipeline


@pytest.mark.parametrize("name", ["adamw_before_the_house.yaml", "before_the_house/config.yaml"])
def test_older_settings_with_anything_anywhere_are_put_in_todays_names_or_refused(name):
    saved = yaml.safe_load((HERE / name).read_text())
    refused = 0
    for place, value in ((place, value) for place in places(saved) for value in OTHERS):
        try:
            settings_of(todays_config(replaced(saved, place, value)))
        except SettingsError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{place}: {value!r}"[:200]) from error
    assert refused > 100


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("choices",), ["a"], r"choices must be settings by name, got \['a'\]"),
        (("optimizer", "eps"), DELETED, "optimizer also needs: eps"),
        (("optimizer", "matrix_step"), "x", "optimizer.matrix_step must be a number or null, got 'x'"),
        (("optimizer", "matrix_momentum"), None, "optimizer.matrix_momentum must be a number, got None"),
        (("resolution_stage", "learning_rate"), [], r"resolution_stage.learning_rate must be a number, got \[\]"),
    ],
)
def test_what_cannot_be_put_in_todays_names_is_told_with_its_place(run, place, value, told):
    saved = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump(replaced(saved, place, value)))
    with pytest.raises(SettingsError, match=rf"config\.yaml: {told}"):
        read_config(run)
    assert read_run(run)["status"] == "unreadable"
