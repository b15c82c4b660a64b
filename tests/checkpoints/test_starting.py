"""Starting from other weights: a released file or an exported one as well as a run."""

import random

import pytest
import torch
from anything import DELETED, OTHERS, places, replaced
from safetensors.torch import save_file

from microdit.checkpoints.reading import CheckpointError
from microdit.checkpoints.starting import initial_optimizer, load_initial_weights
from microdit.checkpoints.writing import CheckpointFiles
from microdit.model.sizes import MicroDiT_Tiny_2
from microdit.training.module import count_micro_batches

COUNTS = {"ready": 4, "started": 4, "processed": 4, "completed": 3}
CHECKPOINT = {
    "global_step": 4,
    "loops": {"fit_loop": {"epoch_loop.batch_progress": {"total": COUNTS, "current": COUNTS, "is_last_batch": False}}},
    "callbacks": {"Telemetry": {"seconds": 0.5, "replaced": 0}},
    "state_dict": {"network.a": torch.ones(2)},
    "optimizer_states": [{"state": {0: {"momentum": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
    "lr_schedulers": [{"last_epoch": 4, "lr_lambdas": [None]}],
    "parameter_names": ["network.a"],
    "metadata": {"step": 4},
}


def small_network():
    return MicroDiT_Tiny_2(
        input_size=8, dim=64, depth=4, head_dim=32, multiple_of=32, patch_mixer_depth=1, patch_mixer_dim=32
    )


@pytest.fixture(params=[".pt", ".safetensors"])
def weights_file(request, wake, tmp_path):
    torch.manual_seed(0)
    network = small_network()
    wake(network)
    path = tmp_path / f"weights{request.param}"
    (torch.save if request.param == ".pt" else save_file)(network.state_dict(), path)
    return path, network


def test_a_file_of_weights_alone_is_a_start(weights_file):
    path, trained = weights_file
    fresh = small_network()
    load_initial_weights(fresh, str(path), "ema")
    for key, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_a_file_of_weights_alone_has_no_optimizer(weights_file):
    with pytest.raises(CheckpointError, match="holds weights alone: set init_optimizer=false"):
        initial_optimizer(str(weights_file[0]))


def test_what_is_no_checkpoint_of_training_says_so(tmp_path):
    torch.save({"some": torch.ones(1)}, tmp_path / "step_0000001.ckpt")
    with pytest.raises(CheckpointError, match="is no checkpoint of training"):
        load_initial_weights(torch.nn.Module(), str(tmp_path / "step_0000001.ckpt"), "ema")


def test_a_checkpoint_with_anything_anywhere_beside_its_weights_is_meant_or_refused(tmp_path):
    path = tmp_path / "step_0000004.ckpt"
    every = [(place, value) for place in places(CHECKPOINT) for value in OTHERS]
    refused = 0
    for place, value in random.Random(20).sample(every, 400):
        torch.save(replaced(CHECKPOINT, place, value), path)
        try:
            count_micro_batches(CheckpointFiles().load_checkpoint(path), 2)
            initial_optimizer(str(path))
        except CheckpointError as error:
            refused += str(path) in str(error)
        except Exception as error:
            raise AssertionError(f"{place}: {value!r}"[:200]) from error
    assert refused > 100


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("parameter_names",), 3, "parameter_names must be a list .*, got 3"),
        (("optimizer_states",), [], "optimizer_states must be a list .*, 1 of them, got"),
        (("optimizer_states", 0, "state"), [1], r"optimizer_states\.0\.state must be settings by name, got \[1\]"),
        (("optimizer_states",), DELETED, "holds no optimizer's state of tensors: set init_optimizer=false"),
        (
            ("optimizer_states", 0, "state", 0, "momentum"),
            3,
            "holds no optimizer's state of tensors: set init_optimizer=false",
        ),
    ],
)
def test_an_optimizers_state_of_another_form_is_named(tmp_path, place, value, told):
    path = tmp_path / "step_0000004.ckpt"
    torch.save(replaced(CHECKPOINT, place, value), path)
    with pytest.raises(CheckpointError, match=rf"step_0000004\.ckpt .*{told}"):
        initial_optimizer(str(path))
