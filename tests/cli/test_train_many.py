"""`python train.py` with several processes, and what may happen to them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_processes import EVERY_STEP, ROOT, SMALL, TWO, children, run_script, start_script, steps, wait_for


def test_a_sweep_with_ddp_runs_every_job_in_a_folder_of_its_own(paths, tmp_path):
    swept = run_script(
        *("train.py", "-m", *TWO, "trainer.devices=2,1", "trainer.max_steps=4"),
        *(*SMALL, paths[0], f"paths.output_root={tmp_path}"),
    )
    assert swept.returncode == 0, swept.stderr
    (sweep,) = tmp_path.iterdir()
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0-test", "1-test"]
    devices = [json.loads((sweep / name / "result.json").read_text())["devices"] for name in ("0-test", "1-test")]
    assert devices == [2, 1]
    logs = {str(path.relative_to(path.parents[2])) for path in (sweep / "0-test" / "logs").glob("started_*/*/*/*.log")}
    assert logs == {"attempt_0/1/stdout.log", "attempt_0/1/stderr.log"}  # rank zero talks to the terminal


def test_a_failed_job_does_not_stop_a_sweep_and_is_told_at_its_end(paths, tmp_path):
    swept = run_script(
        *("train.py", "-m", "trainer.devices=3,1", "trainer.max_steps=1"),
        *(*SMALL, paths[0], f"paths.output_root={tmp_path}"),
    )
    assert swept.returncode == 1
    assert "1 jobs of the sweep failed, the others ran: 0-test" in swept.stderr
    results = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/*/result.json")}
    assert results["1-test"]["status"] == "finished"
    assert results["0-test"]["status"] == "failed"
    assert "does not divide among 3 devices. Possible: 1, 2, 4 devices" in results["0-test"]["error"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in /proc")
def test_a_killed_rank_ends_the_run_a_killed_launcher_ends_its_ranks_and_one_process_finishes_it(paths, tmp_path):
    long = [*SMALL, *EVERY_STEP, paths[0], "trainer.max_steps=200", "trainer.checkpoint_every_n_steps=20"]
    run = tmp_path / "run"
    victim = start_script("train.py", *TWO, *long, f"hydra.run.dir={run}")
    wait_for(lambda: list(run.glob("checkpoints/step_*.ckpt")), victim)
    os.kill(children(victim)[1], signal.SIGKILL)
    killed_at = time.monotonic()
    _, told = victim.communicate(timeout=60)
    assert time.monotonic() - killed_at < 45
    assert victim.returncode == 1
    assert "rank 1 was killed by SIGKILL" in told
    assert json.loads((run / "result.json").read_text())["status"] == "failed"

    launcher = start_script("train.py", f"resume={run}")
    wait_for(lambda: len(children(launcher)) == 2, launcher)
    ranks = children(launcher)
    launcher.kill()  # while they load their libraries: later is no different
    launcher.wait()
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline, "a rank outlives its launcher"
        time.sleep(0.1)
    assert steps(run)[-1] < 199, "it was killed too late to show anything"

    finished = run_script("train.py", f"resume={run}", "trainer=cpu")
    assert finished.returncode == 0, finished.stderr
    assert steps(run) == list(range(200))
    assert json.loads((run / "result.json").read_text())["devices"] == 1


def test_torchrun_makes_one_folder(paths, tmp_path):
    command = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    arguments = [*TWO, *SMALL, paths[0], "trainer.max_steps=2", f"paths.output_root={tmp_path}"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.iterdir()
    assert json.loads((run / "result.json").read_text())["devices"] == 2
    assert done.stdout.count("finished after 2 steps") == 1
