"""Run folders as training leaves them, without training."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """make_run("naive", "p75", seed=1, status="finished", loss=0.5): the folder of a run in tmp_path/sweep.

    `settings`: groups of its config.yaml; what else is given joins its result.json.
    """

    def make(
        masking: str,
        ratio: str,
        seed: int = 1,
        status: str = "finished",
        loss: float = 0.5,
        settings: dict | None = None,
        **more,
    ) -> Path:
        run = tmp_path / "sweep" / f"{masking}-{ratio}-{seed}"
        run.mkdir(parents=True)
        choices = {"masking": masking, "mask_ratio": ratio, "model": "nano"}
        (run / "config.yaml").write_text(json.dumps({"seed": seed, "choices": choices, **(settings or {})}))
        told = {f"choice/{group}": choice for group, choice in choices.items()}
        if status == "killed":
            return run
        if status == "finished":
            told |= {"steps": 4, "validation/loss": loss, "total_flops": 2_000_000 if ratio == "none" else 1_000_000}
        else:
            told |= {"error": f"OSError: /home/somebody/data/{masking}.tar is damaged\nand more"}
        (run / "result.json").write_text(json.dumps({"status": status, "seed": seed, **told, **more}))
        with (run / "metrics.csv").open("w") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "train/loss", "train/flops", "validation/loss"])
            writer.writerows([i, loss * (5 - i), 1000 * (i + 1), loss * (4 - i) if i % 2 else ""] for i in range(4))
        return run

    return make


@pytest.fixture
def headline(make_run, tmp_path) -> Path:
    """A sweep of three rows and two seeds: one run failed, one was killed."""
    for seed in (1, 2):
        make_run("none", "none", seed, loss=0.4 + 0.01 * seed)
        make_run("naive", "p75", seed, loss=0.6 + 0.02 * seed)
    make_run("deferred", "p75", 1, loss=0.5)
    make_run("deferred", "p75", 2, status="failed")
    make_run("deferred", "p50", 1, status="killed")
    return tmp_path / "sweep"
