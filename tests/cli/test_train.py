"""`python train.py` and `python generate.py`, from the outside."""

import csv
import json
import signal
import time
from pathlib import Path

import pytest
from cli_processes import run_script, start_script
from PIL import Image
from small_run import QUICK_PICTURES, SMALL_RUN

SMALL = [*SMALL_RUN, *QUICK_PICTURES, "metrics=none"]


def losses(run: Path) -> dict[int, str]:
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


@pytest.fixture(scope="module")
def swept(paths):
    """The issue's sweep: two mask ratios, a few steps each, on a device whose speed is measured."""
    sweep = ["-m", "mask_ratio=none,p75", "trainer.max_steps=3", *SMALL, "trainer.peak_tflops=null"]
    return run_script("train.py", *sweep, *paths, cold=True)


def test_a_sweep_makes_one_run_folder_a_job(swept, paths):
    assert swept.returncode == 0, swept.stderr
    runs = sorted(Path(paths[1].partition("=")[2]).glob("sweep_*/*/result.json"))
    assert [run.parent.name for run in runs] == ["0-deferred-none", "1-deferred-p75"]
    kept = [json.loads(run.read_text())["patches_kept"] for run in runs]
    assert kept == [64, 16]


def test_the_end_of_a_run_shows_a_table_and_where_the_picture_is(swept):
    assert "finished after 3 steps" in swept.stdout
    assert "validation/loss" not in swept.stderr
    assert "newest sample grid:" in swept.stdout


def test_a_job_whose_configuration_cannot_be_resolved_is_a_failed_row(tmp_path):
    ended = run_script("train.py", "-m", "+experiment=unmasked_finetune", "seed=3", f"hydra.sweep.dir={tmp_path}")
    assert ended.returncode == 1
    (result,) = tmp_path.glob("*/result.json")
    record = json.loads(result.read_text())
    assert (record["status"], record["seed"], record["choice/experiment"]) == ("failed", 3, "unmasked_finetune")
    assert "which masked run to start from?" in record["error"]


def test_a_sweep_that_is_typed_again_makes_only_what_is_not_finished(swept, paths):
    finished, killed = sorted(Path(paths[1].partition("=")[2]).glob("sweep_*/*-deferred-*"))
    record = (finished / "result.json").read_text()
    (killed / "result.json").unlink()
    for checkpoint in (killed / "checkpoints").iterdir():
        checkpoint.unlink()
    arguments = ["mask_ratio=none,p75", "trainer.max_steps=3", *SMALL, "trainer.peak_tflops=null", *paths]
    again = run_script("train.py", "-m", f"hydra.sweep.dir={finished.parent}", *arguments)
    assert again.returncode == 0, again.stderr
    assert f"skipped, finished before with the same settings: {finished}" in again.stdout
    assert again.stdout.count("finished after 3 steps") == 1
    assert (finished / "result.json").read_text() == record
    assert json.loads((killed / "result.json").read_text())["status"] == "finished"
    assert list(losses(killed)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("mask_ratio=p57", ["p57", "p25", "p50", "p75", "p87", "falling"]),
        ("trainer.max_step=3", ["max_step", "did you mean 'max_steps'", "checkpoint_every_n_steps"]),
        ("+trainer.max_step=3", ["max_step", "did you mean 'max_steps'"]),
        ("maskratio=p75", ["maskratio", "mask_ratio"]),
        ("mask_ratio.share=1.5", ["mask_ratio.share must be a number from 0 to 0.9999, got 1.5"]),
    ],
)
def test_a_typo_stops_at_once_and_lists_what_there_is(paths, argument, told):
    ended = run_script("train.py", argument, *paths)
    assert ended.returncode == 1
    assert all(word in ended.stderr for word in told), ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_killed_run_resumes_with_the_losses_of_an_undisturbed_one(paths, tmp_path):
    arguments = [*SMALL, paths[0], "trainer.max_steps=60", "trainer.checkpoint_every_n_steps=7"]
    whole = run_script("train.py", *arguments, f"paths.output_root={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    victim = start_script("train.py", *arguments, f"paths.output_root={tmp_path / 'cut'}")
    deadline = time.monotonic() + 300
    while not list((tmp_path / "cut").glob("*/checkpoints/step_*.ckpt")):
        assert victim.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint appeared"
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    (cut,) = (tmp_path / "cut").iterdir()
    assert not (cut / "result.json").exists(), "it was killed too late to show anything"

    resumed = run_script("train.py", f"resume={cut}")
    assert resumed.returncode == 0, resumed.stderr
    (undisturbed,) = (tmp_path / "whole").iterdir()
    assert losses(cut) == losses(undisturbed)
    assert len(losses(cut)) == 60

    other_model = run_script("train.py", f"resume={cut}", "model.dim=64")
    assert other_model.returncode == 1
    assert "keeps its model" in other_model.stderr


def test_generate_writes_a_picture_of_the_prompts(swept, paths, tmp_path):
    run = sorted(Path(paths[1].partition("=")[2]).glob("sweep_*/1-*"))[-1]
    arguments = [
        f"checkpoint={run}",
        'prompts=["a red circle left of a blue square","a ring"]',
        "num_inference_steps=2",
    ]
    made = run_script("generate.py", *arguments, f"output={tmp_path / 'grid.png'}")
    assert made.returncode == 0, made.stderr
    assert Image.open(tmp_path / "grid.png").size[0] > 2 * 144


def test_generating_from_nothing_says_what_to_name(tmp_path):
    ended = run_script("generate.py", f"checkpoint={tmp_path}")
    assert ended.returncode == 1
    assert "name the folder of a training run" in ended.stderr
    assert "Traceback" not in ended.stderr
