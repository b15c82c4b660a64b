"""Every experiment file trains: composed as on the command line, two steps of a network as small as can be."""

import io
from pathlib import Path

import pytest
import yaml
from compositions import CONF, plain
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from small_run import QUICK_PICTURES, SMALL_SCALE

from microdit.training.run import train
from microdit.training.settings import TrainingSettings, training_settings

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
NEEDS_MORE = {"latents_16", "quality"}  # weights of an autoencoder, and what each picture is worth
DEEPER = "model.depth=3"  # first, middle and last
SMALL = [
    "name=test",
    *SMALL_SCALE,
    *QUICK_PICTURES,
    "model.head_dim=8",
    "trainer.validate_every_n_steps=2",
    "trainer.checkpoint_every_n_steps=2",
    "callbacks.samples.every_n_steps=9",
    "reading.num_workers=0",
    "metrics=none",
]


def composed(data_root: Path, output: Path, *overrides: str) -> TrainingSettings:
    config = plain(*SMALL, f"paths.data_root={data_root}", "trainer.max_steps=2", *overrides)
    return training_settings(config, output, {"autoencoder": "pixel", "text_encoder": "words"})


@pytest.fixture(scope="module")
def masked_run(data_root, tmp_path_factory) -> Path:
    """What the experiments that start from another run start from."""
    run = tmp_path_factory.mktemp("masked") / "run"
    train(composed(data_root, run, "+experiment=deferred_mask_75"), Console(quiet=True))
    return run


@pytest.fixture(scope="module")
def sprint_run(data_root, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("sprint") / "run"
    train(composed(data_root, run, "+experiment=sprint_75", DEEPER), Console(quiet=True))
    return run


@pytest.mark.parametrize("experiment", sorted({*EXPERIMENTS} - NEEDS_MORE))
def test_every_experiment_takes_two_steps_on_a_laptop(experiment, data_root, masked_run, sprint_run, tmp_path):
    starts_elsewhere = "init_from" in yaml.safe_load((CONF / "experiment" / f"{experiment}.yaml").read_text())
    start = [f"init_from={sprint_run if experiment.startswith('sprint') else masked_run}"] if starts_elsewhere else []
    deeper = [DEEPER] if experiment.startswith(("tread", "sprint")) else []
    settings = composed(data_root, tmp_path / "run", f"+experiment={experiment}", *start, *deeper)
    record = train(settings, Console(quiet=True))
    assert (record["status"], record["steps"]) == ("finished", 2)
    assert record["train/loss"] > 0
    assert record["validation/loss"] > 0


def test_weights_that_learned_another_objective_are_not_taken_without_a_word(data_root, masked_run, tmp_path):
    said = Console(record=True, width=200, quiet=False, file=io.StringIO())
    settings = composed(data_root, tmp_path / "run", "objective=rectified_flow", f"init_from={masked_run}")
    train(settings, said)
    assert "which learned EDM and begins anew with RectifiedFlow" in said.export_text()


def test_unmasked_fine_tuning_needs_a_run_to_start_from(data_root, tmp_path):
    with pytest.raises(OmegaConfBaseException, match=r"which masked run to start from\? init_from="):
        composed(data_root, tmp_path / "run", "+experiment=unmasked_finetune")


def test_unmasked_fine_tuning_goes_on_as_the_recipe_does(data_root, masked_run, tmp_path):
    stages = yaml.safe_load((CONF / "stages.yaml").read_text())["stages"]["xl"]
    recipe = next(stage for stage in stages if stage["resolution_stage"] == "res256_finetune")
    settings = composed(data_root, tmp_path, "+experiment=unmasked_finetune", f"init_from={masked_run}")
    assert (settings.init_weights, settings.init_optimizer) == (recipe["init_weights"], recipe["init_optimizer"])


def test_unmasked_fine_tuning_is_as_long_as_the_papers_beside_its_stage():
    steps = ["+experiment=unmasked_finetune", "init_from=runs/x", "resolution_stage.steps=250_000"]
    assert plain("name=test", *steps)["trainer"]["max_steps"] == 30_000
