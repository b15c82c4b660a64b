"""A job that is started once more in its own folder: finished work stays, other settings never mix."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from microdit.build import SettingsError
from microdit.commands.compose import Stage
from microdit.commands.train import launch_unless_finished, run_chain, sent_to
from microdit.files import read_json, write_json
from microdit.runs.folder import checkpoints_of

CHOICES = {"autoencoder": "pixel", "text_encoder": "words", "experiment": "one", "trainer": "cpu"}


def told(config: dict, folder: Path, choices: dict[str, str] = CHOICES) -> str:
    console = Console(record=True, width=300)
    launch_unless_finished(config, choices, folder, console)
    return console.export_text()


@pytest.fixture
def config(run_settings) -> dict:
    return run_settings("trainer.max_steps=4").config


@pytest.fixture
def finished(config, tmp_path) -> Path:
    folder = tmp_path / "0-job"
    told(config, folder)
    record = read_json(folder / "result.json", "")
    assert record["status"] == "finished"
    write_json(folder / "result.json", {**record, "evaluated/later": 1.0})
    return folder


def changed(config: dict, group: str, **values) -> dict:
    return {**config, group: {**config[group], **values}}


def test_a_finished_job_is_skipped_wherever_and_however_it_is_made(finished, config):
    before = (finished / "result.json").read_text()
    assert "skipped, finished before with the same settings" in told(config, finished)
    assert "skipped" in told(changed(config, "trainer", device_batch_size=1, keep_checkpoints=1), finished)
    assert "skipped" in told(config, finished, {**CHOICES, "trainer": "gpu", "logger": "csv"})
    assert (finished / "result.json").read_text() == before


def test_other_metrics_judge_a_finished_job_again(finished, config):
    loss = {
        "_target_": "microdit.evaluation.shapes.loss.ShapesDenoisingLoss",
        "domains": ["synthetic"],
        "count": 4,
        "noise_levels": [1.0],
        "seed": 0,
    }
    assert "skipped" not in told({**config, "metrics": {"loss": loss}}, finished)
    assert json.loads((finished / "result.json").read_text())["denoising_loss/mean"] > 0


@pytest.mark.parametrize(
    ("group", "values", "difference"),
    [
        ("optimizer", {"eps": 0.5}, r"optimizer\.eps: 1e-08, now 0\.5"),
        ("trainer", {"max_steps": 5}, r"trainer\.max_steps: 4, now 5"),
        ("variation", {"patch_size": 4}, r"variation\.patch_size: null, now 4"),
    ],
)
def test_a_folder_of_other_settings_is_refused_and_left_as_it_is(finished, config, group, values, difference):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(SettingsError, match=rf"other settings \({difference}\).* resume="):
        told(changed(config, group, **values), finished)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_another_experiment_is_refused_even_where_its_values_are_the_same(finished, config):
    with pytest.raises(SettingsError, match=r"choices\.experiment: one, now two"):
        told(config, finished, {**CHOICES, "experiment": "two"})


def test_a_job_without_a_checkpoint_may_start_with_other_settings(finished, config):
    for checkpoint in checkpoints_of(finished):
        checkpoint.unlink()
    (finished / "result.json").write_text('{"status": "failed"}')
    assert "skipped" not in told(changed(config, "optimizer", eps=0.5), finished)
    assert "eps: 0.5" in (finished / "config.yaml").read_text()


def test_a_run_that_is_resumed_by_name_goes_on_with_more_steps(finished, config):
    told({**changed(config, "trainer", max_steps=5), "resume": str(finished)}, finished)
    assert json.loads((finished / "result.json").read_text())["steps"] == 5


def test_the_projects_that_a_resumed_run_is_sent_to_are_named():
    wandb = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "theirs"}
    loggers = {"a": wandb, "b": {**wandb, "offline": True}, "c": {"_target_": "microdit.x.Board", "project": "x"}}
    assert [f"{key}={text}" for key, text, _ in sent_to({"logger": loggers})] == ["logger.a.project=theirs"]


def test_a_folder_with_a_link_out_of_it_is_not_trained_in_however_it_is_named(config, tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "theirs"
    outside.mkdir()
    folder.mkdir()
    for name in ("checkpoints", "samples"):
        (folder / name).symlink_to(outside)
        with pytest.raises(SettingsError, match=f"{name} is a link to .*outside"):
            told(config, folder)
        with pytest.raises(SettingsError, match=f"{name} is a link to .*outside"):
            run_chain([Stage("one", config, CHOICES)], folder, 0.2, Console(quiet=True))
        (folder / name).unlink()
    assert list(outside.iterdir()) == []
