"""Every masking method, also where nothing is dropped, is the same run in one process, under DDP and under FSDP."""

import os

import pytest
import torch
from rich.console import Console

from microdit.checkpoints.reading import network_weights
from microdit.runs.folder import checkpoints_of
from microdit.training.run import train

STEPS = 4
RUN = [
    f"trainer.max_steps={STEPS}",
    "optimizer=adamw_short",
    "resolution_stage.global_batch_size=8",
    "resolution_stage.learning_rate=1e-4",
    "callbacks.samples.prompts=[]",
    "trainer.checkpoint_every_n_steps=4",
]
RATIOS = ["none", "p75", "falling"]
METHODS = [(masking, ratio) for masking in ("deferred", "naive", "maskdit") for ratio in RATIOS] + [("none", "none")]
METHODS += [("sprint", "none"), ("sprint", "p75")]  # whose squares cannot share each level of a falling ratio
MORE = {"sprint": ["masking.path_drop=0.5", "model.depth=3"]}
SHARES = {1: "trainer.device_batch_size=4", 2: "trainer.device_batch_size=2"}  # micro-batches of a step
WAYS = {
    (strategy, batches): [f"trainer.strategy={strategy}", "trainer.devices=2", share]
    for strategy in ("ddp", "fsdp")
    for batches, share in SHARES.items()
}
# All of them take minutes. MaskDiT without a mask is where not every weight is used.
ALL = [(*method, *way) for method in METHODS for way in WAYS]
SOME = [one for one in ALL if one[0] == "maskdit" and one[1] != "p75"] + [("sprint", "p75", "fsdp", 2)]
CHOSEN = ALL if os.environ.get("MICRODIT_ALL_MASKINGS") else SOME


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return tmp_path_factory.mktemp("alone")


@pytest.mark.parametrize(("masking", "ratio", "strategy", "batches"), CHOSEN)
def test_it_is_the_run_of_one_process(
    run_settings, train_in_ranks, logged, alone, tmp_path, masking, ratio, strategy, batches
):
    chosen = [*RUN, f"masking={masking}", f"mask_ratio={ratio}", *MORE.get(masking, [])]
    one = alone / f"{masking}_{ratio}"
    if not one.exists():
        train(run_settings(*chosen, output=one), Console(quiet=True))
    train_in_ranks(run_settings(*chosen, *WAYS[strategy, batches], output=tmp_path))
    assert logged(tmp_path) == pytest.approx(logged(one), abs=1e-6)
    expected, found = (network_weights(checkpoints_of(run)[-1], "raw") for run in (one, tmp_path))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
