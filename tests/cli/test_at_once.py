"""Runs and sweeps that start in the same second have a folder each, with their own seed's result."""

import os
from collections import Counter
from pathlib import Path

from cli_processes import SMALL, start_script

from microdit.checkpoints.reading import checkpoint_metadata, latest_checkpoint
from microdit.files import read_json
from microdit.runs.folder import read_config

RUNS = int(os.environ.get("MICRODIT_RUNS_AT_ONCE", "8"))
"""A quarter as many sweeps of two jobs; 200 take minutes."""
PROCESSES = 8
SHORT = [*SMALL, "trainer.max_steps=1", "callbacks.samples.prompts=[]"]


def started(commands):
    """Runs all, eight at a time, and returns their exit codes."""
    waiting, running, codes = list(commands), [], []
    while waiting or running:
        while waiting and len(running) < PROCESSES:
            running.append(start_script("train.py", *waiting.pop()))
        ended = running.pop(0)
        said = ended.communicate(timeout=300)
        codes.append((ended.returncode, said[1]))
    return codes


def test_each_has_a_folder_of_its_own_with_its_own_seed(paths, tmp_path):
    where = [paths[0], f"paths.output_root={tmp_path}"]
    assert started([[*SHORT, *where, "seed=0"]])[0][0] == 0  # the data is there before the others want it
    runs = [[*SHORT, *where, f"seed={seed}"] for seed in range(1, RUNS)]
    sweeps = [["-m", *SHORT, *where, f"seed={1000 + seed},{2000 + seed}"] for seed in range(RUNS // 4)]
    codes = started([*runs, *sweeps])
    assert {code for code, _ in codes} == {0}, codes
    folders = [path.parent for path in tmp_path.rglob("result.json")]
    assert len(folders) == RUNS + 2 * (RUNS // 4)
    assert len(list(tmp_path.iterdir())) == RUNS + RUNS // 4
    seeds = Counter()
    for folder in folders:
        config = read_config(folder)["seed"]
        kept = checkpoint_metadata(latest_checkpoint(folder))["config"]["seed"]
        assert read_json(Path(folder / "result.json"), "")["seed"] == config == kept
        seeds[config] += 1
    wanted = {*range(RUNS), *(base + seed for seed in range(RUNS // 4) for base in (1000, 2000))}
    assert seeds == Counter(wanted)
