"""`python evaluate.py` and `python report.py`, from the outside: from runs to a table."""

import shutil
from pathlib import Path

import pytest
from cli_processes import run_script
from small_run import SMALL_RUN

from microdit.files import read_json

SMALL = [*SMALL_RUN, "trainer.max_steps=3", "trainer.validate_every_n_steps=1", "callbacks.samples.prompts=[]"]
FEW = [
    "metrics.compositional.prompts_per_skill=1",
    "metrics.compositional.colour_prompts=2",
    "metrics.compositional.sampling.num_inference_steps=2",
]


@pytest.fixture(scope="module")
def sweep(paths, tmp_path_factory) -> Path:
    """One run that ends well and one that fails: its budget pays for no step."""
    folder = tmp_path_factory.mktemp("sweep")
    arguments = ["-m", "trainer.max_flops=null,1000", f"hydra.sweep.dir={folder}", *SMALL, *FEW, *paths]
    ended = run_script("train.py", *arguments)
    assert ended.returncode != 0
    return folder


@pytest.fixture(scope="module")
def run(sweep) -> Path:
    (finished,) = (path.parent for path in sweep.glob("*/result.json") if '"finished"' in path.read_text())
    return finished


def test_evaluating_adds_numbers_under_names_of_their_own(run):
    before = read_json(run / "result.json", "")
    arguments = [f"checkpoint={run}", "metrics=[compositional,shapes_loss]", *FEW, "metrics.shapes_loss.count=8"]
    ended = run_script("evaluate.py", *arguments, "weights=[ema,raw]", "sampling.guidance_scale=2.0", cold=True)
    assert ended.returncode == 0, ended.stderr
    assert "compositional/overall@raw,guidance_scale=2" in ended.stdout
    after = read_json(run / "result.json", "")
    assert after.items() >= before.items()
    assert {"denoising_loss/mean", "denoising_loss/mean@raw", "compositional/overall@guidance_scale=2"} <= after.keys()


def test_pictures_that_were_kept_are_judged_again(run):
    before = (run / "result.json").read_text()
    ended = run_script("evaluate.py", f"pictures={run}/evaluation", "metrics=shapes", *FEW)
    assert ended.returncode == 0, ended.stderr
    assert (run / "result.json").read_text() == before


def test_two_processes_share_an_evaluation_and_find_the_same_numbers(run, tmp_path):
    arguments = ["metrics=[compositional,shapes_loss]", *FEW, "metrics.shapes_loss.count=8", "weights=raw"]
    found = []
    for devices in (1, 2):
        mine = tmp_path / str(devices)
        shutil.copytree(run, mine, ignore=shutil.ignore_patterns("evaluation"))
        ended = run_script("evaluate.py", f"checkpoint={mine}", *arguments, f"trainer.devices={devices}")
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("denoising_loss/mean@raw") == 1
        assert f"on {devices} device" in ended.stderr
        found.append({name: value for name, value in read_json(mine / "result.json", "").items() if "@raw" in name})
    assert found[0] == found[1]
    assert len(found[0]) > 10
    ended = run_script("evaluate.py", f"checkpoint={run}", "trainer.devices=900")
    assert ended.returncode == 1
    assert "trainer.devices=900 processes are asked for" in ended.stderr


def test_a_mistake_is_told_in_one_sentence(tmp_path, run):
    for arguments, message in (
        ([], "either checkpoint=RUN or pictures=RUN/evaluation"),
        ([f"checkpoint={tmp_path}"], "name the folder of a training run"),
        ([f"checkpoint={run.parent}"], f"There are runs in it, name one of them: {run}"),
        ([f"checkpoint={run}x"], f"did you mean {run}?"),
        ([f"pictures={run}/evaluatoin"], f"did you mean {run}/evaluation?"),
        (["checkpoint=2024_06"], "there is no 2024_06"),
        (["checkpoint=~nobody/2024_06"], """'checkpoint="~nobody/2024_06"'"""),
        (["batch_size=many", f"checkpoint={run}"], "batch_size must be a whole number"),
    ):
        ended = run_script("evaluate.py", *arguments)
        assert ended.returncode == 1
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_sweep_becomes_a_table_that_shows_the_failed_run(sweep):
    layout = "rows: [status]\ncolumns: [{column: validation/loss, format: .3f}]\n"
    (sweep / "report.yaml").write_text(layout)
    ended = run_script("report.py", str(sweep), cold=True)
    assert ended.returncode == 0, ended.stderr
    table = (sweep / "table.md").read_text()
    assert table in ended.stdout
    assert "| failed | – | 0 (1 failed) |" in table
    assert "does not pay for one step" in ended.stdout
    assert (sweep / "samples.png").is_file()
    assert (sweep / "curves.png").is_file()


def test_reporting_nothing_says_what_to_name(tmp_path):
    ended = run_script("report.py", str(tmp_path))
    assert ended.returncode == 1
    assert "holds no run" in ended.stderr
    assert "Traceback" not in ended.stderr
