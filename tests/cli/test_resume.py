"""What the command line may change in a run that goes on."""

from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from microdit.build import SettingsError
from microdit.commands.compose import run_folder
from microdit.commands.resumed import changed_values

SAVED = {
    "model": {"dim": 64},
    "trainer": {"devices": 2, "strategy": "ddp", "max_steps": 60, "max_flops": None},
    "logger": {},
    "resolution_stage": {"global_batch_size": 8, "learning_rate": 1e-3},
    "init_from": None,
    "seed": 0,
    "choices": {"trainer": "ddp", "model": "nano"},
}
NOW = OmegaConf.create(
    {"trainer": {"devices": 1, "strategy": "ddp", "max_steps": 2400, "max_flops": None}, "logger": {"wandb": {"a": 1}}}
)


def changed(*overrides):
    return changed_values(SAVED, [*overrides, "resume=last"], NOW, Path("runs/a"))


def test_values_change_and_the_rest_is_kept():
    config, choices = changed("trainer.devices=4", "resolution_stage.learning_rate=1e-4")
    assert config["trainer"] == {**SAVED["trainer"], "devices": 4}
    assert config["resolution_stage"]["learning_rate"] == 1e-4
    assert choices == SAVED["choices"]


def test_trainer_and_logger_can_be_exchanged_but_the_length_stays():
    config, choices = changed("trainer=cpu", "logger=wandb")
    assert config["trainer"] == {"devices": 1, "strategy": "ddp", "max_steps": 60, "max_flops": None}
    assert config["logger"] == {"wandb": {"a": 1}}
    assert choices == {"trainer": "cpu", "model": "nano", "logger": "wandb"}
    assert changed("trainer=cpu", "trainer.max_steps=90")[0]["trainer"]["max_steps"] == 90


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.dim=128", r"model\.dim is 64 in runs/a: a resumed run keeps its model, it cannot become 128"),
        ("seed=1", "keeps its samples and their order"),
        ("resolution_stage.global_batch_size=16", "keeps its samples and their order"),
        ("model=tiny", "other groups than trainer, logger cannot be exchanged"),
        ("trainer.device=4", "has no such setting"),
        ("+trainer.speed=4", "has no such setting"),
        ("~trainer.devices", "has no such setting"),
    ],
)
def test_what_would_make_it_another_run_is_refused(override, told):
    with pytest.raises(SettingsError, match=told):
        changed(override)


def test_a_run_is_found_by_its_folder_its_checkpoint_or_as_the_last(tmp_path):
    for name in ("a", "chain/1-first"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump({}))
    file = tmp_path / "a" / "checkpoints" / "step_0000001.ckpt"
    file.touch()
    assert run_folder(str(tmp_path / "a"), "runs", "new") == str(tmp_path / "a")
    assert run_folder(str(file), "runs", "new") == str(tmp_path / "a")
    assert run_folder("last", str(tmp_path), "new") == str(tmp_path / "a")  # the other has nothing to go on from yet
    (tmp_path / "chain/1-first/checkpoints/step_0000001.ckpt").touch()
    assert run_folder("last", str(tmp_path), "new") == str(tmp_path / "chain" / "1-first")
    inside = tmp_path / "a" / "wandb" / "run-1" / "files"
    inside.mkdir(parents=True)
    (inside / "config.yaml").write_text("_wandb: {}")  # is newer, and no run
    assert run_folder("last", str(tmp_path), "new") == str(tmp_path / "chain" / "1-first")
    (tmp_path / "chain" / "stages.yaml").touch()
    assert run_folder("last", str(tmp_path), "new") == str(tmp_path / "chain")
    assert run_folder(None, str(tmp_path), "new") == str(tmp_path / "new")
    assert (tmp_path / "new").is_dir()  # at once: nobody else takes it
    with pytest.raises(SettingsError, match=r"holds no config\.yaml"):
        run_folder(str(tmp_path), "runs", "new")
