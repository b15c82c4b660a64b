"""Starting from other weights: a released file or an exported one as well as a run."""

import pytest
import torch
from safetensors.torch import save_file

from microdit.checkpoints.reading import CheckpointError
from microdit.checkpoints.starting import initial_optimizer, load_initial_weights
from microdit.model.sizes import MicroDiT_Tiny_2


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
