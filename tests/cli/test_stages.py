"""`python train.py -cn stages`: two resolutions, masked then unmasked, each from the weights of the one before."""

import json
import shutil

import pytest
import torch
import yaml
from cli_processes import EVERY_STEP, SMALL, TWO, children, run_script, start_script, steps, wait_for

from microdit.checkpoints.reading import latest_checkpoint, network_weights, read_checkpoint

CHAIN = [
    *(setting for setting in SMALL if not setting.startswith(("name=", "resolution_stage.resolution_px"))),
    "resolution_stage.steps=3",
    "callbacks.samples.every_n_steps=100",
]
STAGES = ["1-shapes16_pretrain", "2-shapes16_finetune", "3-shapes32_pretrain", "4-shapes32_finetune"]


@pytest.fixture(scope="module")
def chain(paths, tmp_path_factory):
    """The folder of a finished chain, not to be changed, and what it printed."""
    folder = tmp_path_factory.mktemp("chain")
    done = run_script("train.py", "-cn", "stages", *CHAIN, paths[0], f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_plan_and_its_cost_come_first(chain):
    _, said = chain
    assert said.index("in all") < said.index("stage 1 of 4")
    assert said.index("dollars") < said.index("stage 1 of 4")


def test_every_stage_has_its_resolution_masking_and_start(chain):
    folder, _ = chain
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == STAGES
    configs = [yaml.safe_load((folder / name / "config.yaml").read_text()) for name in STAGES]
    assert [config["resolution_stage"]["resolution_px"] for config in configs] == [16, 16, 32, 32]
    assert [config["resolution_stage"]["pos_interp_scale"] for config in configs] == [1.0, 1.0, 2.0, 2.0]
    assert [config["mask_ratio"]["share"] for config in configs] == [0.75, 0.0, 0.75, 0.0]
    assert [config["init_from"] for config in configs] == [None, *(str(folder / name) for name in STAGES[:3])]
    records = [json.loads((folder / name / "result.json").read_text()) for name in STAGES]
    assert [record["patches_kept"] for record in records] == [16, 64, 64, 256]
    assert {record["status"] for record in records} == {"finished"}


def test_the_optimizer_is_kept_where_the_recipe_keeps_it(chain):
    folder, _ = chain
    taken = [read_checkpoint(latest_checkpoint(folder / name))["optimizer_states"][0]["state"] for name in STAGES]
    assert [float(state[0]["step"]) for state in taken] == [3, 6, 3, 3]


def test_positions_are_made_anew_at_the_higher_resolution(chain):
    folder, _ = chain
    tables = [network_weights(latest_checkpoint(folder / name), "raw")["pos_embed"] for name in STAGES]
    assert [table.shape[1] for table in tables] == [64, 64, 256, 256]
    assert torch.equal(tables[2][0, 2], tables[0][0, 1])  # every second position is one of the smaller grid


def test_a_chain_goes_on_where_it_stopped_and_finished_stages_are_skipped(chain, tmp_path):
    folder = tmp_path / "chain"
    shutil.copytree(chain[0], folder)
    shutil.rmtree(folder / STAGES[3])
    (folder / STAGES[2] / "result.json").unlink()
    untouched = (folder / STAGES[1] / "result.json").stat().st_mtime_ns
    done = run_script("train.py", f"resume={folder}", "trainer.device_batch_size=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == 2
    assert (folder / STAGES[1] / "result.json").stat().st_mtime_ns == untouched
    records = [json.loads((folder / name / "result.json").read_text()) for name in STAGES]
    assert [record["status"] for record in records] == ["finished"] * 4
    before = json.loads((chain[0] / STAGES[3] / "result.json").read_text())
    assert records[3]["train/loss"] == pytest.approx(before["train/loss"], abs=1e-4)


def test_a_stage_in_two_processes_stops_for_a_signal_and_the_chain_goes_on(chain, tmp_path):
    folder = tmp_path / "chain"
    shutil.copytree(chain[0], folder)
    for name in STAGES[1:]:
        shutil.rmtree(folder / name)
    resumed, second = [f"resume={folder}", "trainer.max_steps=30", *EVERY_STEP], folder / STAGES[1]
    victim = start_script("train.py", *resumed, *TWO)
    wait_for(lambda: (second / "metrics.csv").exists() and len(steps(second)) > 3, victim)
    assert len(children(victim)) == 2
    victim.terminate()
    told, _ = victim.communicate(timeout=120)
    assert victim.returncode == 75
    assert "stopped at step" in told
    saved = steps(second)[-1] + 1
    assert 3 < saved < 30
    assert (second / "checkpoints" / f"step_{saved:07d}.ckpt").exists()
    assert not (folder / STAGES[2]).exists()
    done = run_script("train.py", *resumed, "trainer=cpu")
    assert done.returncode == 0, done.stderr
    for name in STAGES[1:]:
        assert steps(folder / name) == list(range(30))
        assert (folder / name / "result.json").exists()
