import copy
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from microdit.encoders.weights import FrozenModule, weights_folder

FILES = [["config.json"], ["model.safetensors", "model.bin"]]


def holder(dtype="float32"):
    """A network with one trainable layer that holds a frozen one; and how often the frozen one was read."""
    reads = []

    def read():
        reads.append(1)
        return nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))

    parent = nn.Module()
    parent.trained, parent.frozen = nn.Linear(3, 3), FrozenModule(read, dtype)
    return parent, reads


def test_nothing_is_read_before_first_use_and_then_once():
    parent, reads = holder()
    parent.to("cpu").train()
    assert reads == []
    assert parent.frozen.module() is parent.frozen.module()
    assert reads == [1]


def test_the_frozen_module_is_neither_trained_nor_saved():
    parent, _ = holder()
    parent.frozen.module()
    assert {name for name, _ in parent.named_parameters()} == {"trained.weight", "trained.bias"}
    assert set(parent.state_dict()) == {"trained.weight", "trained.bias"}
    parent.train()
    assert not parent.frozen.module().training
    assert not any(parameter.requires_grad for parameter in parent.frozen.module().parameters())
    parent.load_state_dict(holder()[0].state_dict())


def test_the_frozen_module_follows_its_parent_to_a_device():
    # "meta" is the one other device that every machine has.
    before, _ = holder()
    before.frozen.module()
    before.to("meta")
    after, _ = holder()
    after.to("meta")
    for parent in (before, after):
        assert parent.frozen.device.type == "meta"
        assert {parameter.device.type for parameter in parent.frozen.module().parameters()} == {"meta"}


def test_the_frozen_module_keeps_its_own_precision():
    parent, _ = holder("bfloat16")
    assert parent.frozen.module()[0].weight.dtype == torch.bfloat16
    parent.to(torch.float16)
    assert parent.trained.weight.dtype == torch.float16
    assert parent.frozen.module()[0].weight.dtype == torch.bfloat16


def test_weights_first_read_in_a_validation_loop_can_still_be_moved():
    parent, _ = holder()
    with torch.inference_mode():
        parent.frozen.module()
    assert not parent.frozen.module()[0].weight.is_inference()
    parent.to("meta")


def test_a_copy_of_the_parent_does_not_share_the_frozen_module():
    parent, _ = holder()
    parent.frozen.module()
    twin = copy.deepcopy(parent)
    twin.to("meta")
    assert parent.frozen.module()[0].weight.device.type == "cpu"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="bfloat16"):
        FrozenModule(nn.Identity, "half")


@pytest.mark.parametrize("present", ["model.safetensors", "model.bin"])
def test_a_folder_with_one_of_the_alternatives_is_enough(tmp_path, present):
    for name in ("config.json", present):
        (tmp_path / name).touch()
    assert weights_folder(str(tmp_path), FILES, "autoencoder.weights") == tmp_path
    assert weights_folder(f"local-dir:{tmp_path}", FILES, "autoencoder.weights") == tmp_path


def test_a_missing_folder_says_which_option_to_set_and_to_what(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        weights_folder(str(tmp_path / "absent"), FILES, "autoencoder.weights")
    for part in (str(tmp_path / "absent"), "does not exist", "autoencoder.weights=FOLDER", "config.json"):
        assert part in str(error.value)


def test_a_folder_that_lacks_a_file_names_it(tmp_path):
    (tmp_path / "config.json").touch()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors or model\.bin\."):
        weights_folder(str(tmp_path), FILES, "autoencoder.weights")


@pytest.mark.parametrize("weights", ["./absent", "~/absent/of/mine", "local-dir:some/where", "absent"])
def test_a_path_is_never_looked_up_on_the_hub(weights):
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        weights_folder(weights, FILES, "autoencoder.weights")
    assert time.monotonic() - start < 1


def ask_elsewhere(weights, home, environment):
    """The answer of `weights_folder` in a fresh process (the hub reads its environment once), and its seconds."""
    program = (
        "import time, huggingface_hub\n"
        "from microdit.encoders.weights import weights_folder\n"
        "start = time.monotonic()\n"
        "try:\n"
        f"    answer = weights_folder({weights!r}, {FILES}, 'autoencoder.weights')\n"
        "except FileNotFoundError as error:\n"
        "    answer = error\n"
        "print(time.monotonic() - start)\n"
        "print(answer)\n"
    )
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    run = subprocess.run(
        [sys.executable, "-c", program],
        env=clean | {"HF_HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    seconds, answer = run.stdout.split("\n", 1)
    return answer.strip(), float(seconds)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"HF_HUB_OFFLINE": "1"}, "offline mode"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "Connection refused")],
)
def test_without_a_hub_the_error_comes_soon_and_says_how_to_go_on(tmp_path, environment, reason):
    message, seconds = ask_elsewhere("hf-hub:owner/name/vae", tmp_path, environment)
    assert seconds < 5
    assert reason in message
    assert "hf download owner/name --include vae/config.json --include vae/model.safetensors" in message
    assert "autoencoder.weights=FOLDER" in message
    assert len(message.splitlines()) == 1


def test_weights_downloaded_once_are_found_without_a_network(tmp_path):
    # The layout of the hub's cache, for a repository that has only the second of two alternatives.
    repository, commit = tmp_path / "hub" / "models--owner--name", "0" * 40
    snapshot = repository / "snapshots" / commit / "vae"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name in ("config.json", "model.bin"):
        (snapshot / name).touch()
    answer, seconds = ask_elsewhere("owner/name/vae", tmp_path, {"HF_HUB_OFFLINE": "1"})
    assert answer == str(snapshot)
    assert seconds < 5


def test_a_hub_name_without_owner_is_refused_in_a_sentence():
    with pytest.raises(FileNotFoundError, match=r"hf-hub:name: .*autoencoder\.weights=FOLDER"):
        weights_folder("hf-hub:name", FILES, "autoencoder.weights")


def test_weights_that_do_not_come_with_the_package_are_refused_with_those_that_do():
    with pytest.raises(FileNotFoundError, match="no embedded:sdxl: with this package come"):
        weights_folder("embedded:sdxl", [["config.json"]], "autoencoder.weights")


def test_a_folder_below_the_given_one_that_fits_is_named(tmp_path):
    for name in ("vae/config.json", "vae/model.bin", "unet/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"/vae has them: autoencoder\.weights=.*/vae\. "):
        weights_folder(str(tmp_path), FILES, "autoencoder.weights")


@pytest.mark.parametrize("beside", [True, False])
def test_a_single_file_of_weights_is_no_folder_and_is_not_said_to_be_absent(tmp_path, beside):
    (tmp_path / "model.bin").write_text("")
    if beside:
        (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"model\.bin is a file, and a folder is wanted") as refused:
        weights_folder(str(tmp_path / "model.bin"), FILES, "autoencoder.weights")
    assert "does not exist" not in str(refused.value)
    assert (f"{tmp_path} has them" in str(refused.value)) == beside
