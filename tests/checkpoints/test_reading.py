"""Weights come out of checkpoint files safely, the right ones, and with what does not fit listed."""

import errno
import os
import pickle
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from microdit.checkpoints.reading import (
    CheckpointError,
    latest_checkpoint,
    load_weights,
    network_weights,
    read_checkpoint,
)
from microdit.checkpoints.released import read_released
from microdit.files import write_yaml
from microdit.runs.folder import checkpoint_step, checkpoints_of


class Mischief:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def saved(path: Path, **state: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {k.replace("__", "."): torch.tensor([v]) for k, v in state.items()}}, path)
    return path


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*absent\.ckpt"):
        read_checkpoint(tmp_path / "absent.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_a_damaged_checkpoint_says_so(tmp_path, share):
    path = saved(tmp_path / "a.ckpt", network__a=1.0)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"a\.ckpt cannot be read .*; use an earlier checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path, seed):
    path = saved(tmp_path / "checkpoints" / "step_20.ckpt", network__a=1.0, ema__a=2.0)
    before = saved(tmp_path / "checkpoints" / "step_10.ckpt", network__a=0.0)
    content, chance = bytearray(path.read_bytes()), random.Random(seed)
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    try:
        read, refused = read_checkpoint(path)["state_dict"], ""
    except CheckpointError as error:
        read, refused = None, str(error)
    if read is None:
        assert f"{path} cannot be read" in refused
        assert f"resume={before}" in refused
    else:
        assert read == {"network.a": torch.tensor([1.0]), "ema.a": torch.tensor([2.0])}


def test_a_changed_value_is_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"network.a": torch.arange(1000.0)}}, path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(500.0, 510.0).numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        read_checkpoint(path)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_in_a_checkpoint_runs(tmp_path, save):
    save({"state_dict": {}, "extra": Mischief(tmp_path / "made")}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "made").exists()


def test_the_newest_checkpoint_is_the_one_of_the_highest_step(tmp_path):
    for step in (900, 1000, 20):
        saved(tmp_path / "checkpoints" / f"step_{step}.ckpt", network__a=1.0)
    saved(tmp_path / "checkpoints" / "other.ckpt", network__a=1.0)
    assert [checkpoint_step(path) for path in checkpoints_of(tmp_path)] == [20, 900, 1000]
    assert latest_checkpoint(tmp_path).name == "step_1000.ckpt"
    assert checkpoint_step(tmp_path / "checkpoints" / "other.ckpt") == -1


def test_a_run_without_checkpoints_says_why(tmp_path):
    with pytest.raises(CheckpointError, match="it ended before its first checkpoint"):
        latest_checkpoint(tmp_path)


def test_a_folder_that_is_no_run_says_what_to_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"there is no .*absent: name the folder of a run"):
        latest_checkpoint(tmp_path / "absent")
    for name in ("1-first", "2-second"):
        saved(tmp_path / name / "checkpoints" / "step_1.ckpt", network__a=1.0)
    with pytest.raises(CheckpointError, match=r"holds several runs, name one of them: .*1-first, .*2-second"):
        latest_checkpoint(tmp_path)


def test_the_moving_average_is_taken_where_there_is_one(tmp_path):
    both = saved(tmp_path / "both.ckpt", network__a=1.0, ema__a=2.0, optimizer__a=3.0)
    plain = saved(tmp_path / "plain.ckpt", network__a=1.0)
    assert network_weights(both, "ema") == {"a": torch.tensor([2.0])}
    assert network_weights(both, "raw") == {"a": torch.tensor([1.0])}
    assert network_weights(plain, "ema") == {"a": torch.tensor([1.0])}


def test_weights_are_either_ema_or_raw(tmp_path):
    path = saved(tmp_path / "a.ckpt", network__a=1.0)
    with pytest.raises(CheckpointError, match='"ema" or "raw", got "best"'):
        network_weights(path, "best")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_no_run_goes_on_from_weights_that_are_no_floating_point_numbers(tmp_path, dtype):
    torch.save({"state_dict": {"network.a": torch.ones(2, dtype=dtype)}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt holds no weights in network\.a"):
        read_checkpoint(tmp_path / "a.ckpt")


def test_a_checkpoint_without_a_network_gives_no_weights(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"a\.ckpt holds no weights of a network"):
        network_weights(tmp_path / "a.ckpt", "ema")


@pytest.mark.parametrize("refusal", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
@pytest.mark.parametrize("read", [read_checkpoint, read_released])
def test_what_torch_was_refused_by_the_system_is_not_told_as_damage(tmp_path, monkeypatch, refusal, read):
    def load(path, **options):
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: {os.strerror(refusal)} ({refusal})")

    torch.save({"state_dict": {"network.a": torch.ones(2)}}, tmp_path / "a.ckpt")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(OSError, match=r"unable to open file <.*a\.ckpt>") as raised:
        read(tmp_path / "a.ckpt")
    assert raised.value.errno == refusal


def test_weights_that_fit_are_loaded():
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    load_weights(target, source.state_dict(), "here")
    assert torch.equal(source.weight, target.weight)


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded():
    network = nn.Linear(3, 2)
    before = network.weight.detach().clone()
    with pytest.raises(CheckpointError) as caught:
        load_weights(network, {"weight": torch.zeros(2, 4), "scale": torch.zeros(1)}, "a.ckpt")
    lines = str(caught.value).splitlines()
    assert lines[0] == "a.ckpt does not fit this network:"
    assert [line.strip() for line in lines[1:]] == [
        "missing bias",
        "unexpected scale",
        "weight is [2, 4], the network's is [2, 3]",
    ]
    assert torch.equal(network.weight, before)


def test_a_long_list_is_cut_with_a_count():
    with pytest.raises(CheckpointError, match=r"\.\.\. and 12 more"):
        load_weights(nn.Linear(3, 2), {f"k{i}": torch.zeros(1) for i in range(30)}, "a.ckpt")


CONFIG = {
    "seed": 1,
    "model": {"dim": 64, "widths": [1, 2]},
    "resolution_stage": {"resolution_px": 32},
    "trainer": {"a": 1},
}


def of_a_run(run: Path, **metadata) -> Path:
    """A run with a config.yaml, and a checkpoint among its own that says this of itself."""
    path = saved(run / "checkpoints" / "step_20.ckpt", network__a=1.0)
    content = torch.load(path)
    torch.save({**content, "metadata": {"step": 20, "config": CONFIG, **metadata}}, path)
    write_yaml(run / "config.yaml", {**CONFIG, "choices": {}})
    return path


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ({"step": 30}, "step 30"),
        ({"config": {**CONFIG, "seed": 2}}, "seed: 2, now 1"),
        ({"config": {**CONFIG, "model": {"dim": 128, "widths": [1, 2]}}}, r"model\.dim: 128, now 64"),
        ({"config": {**CONFIG, "model": 3}}, r"model: 3, now not set"),
        ({"config": {**CONFIG, "resolution_stage": {"resolution_px": 64}}}, r"resolution_stage\.resolution_px: 64"),
        ({"config": [torch.zeros(1)]}, "its settings are none"),
    ],
)
def test_a_checkpoint_of_another_run_or_step_is_not_taken_for_a_runs_own(tmp_path, metadata, told):
    path = of_a_run(tmp_path / "run", **metadata)
    with pytest.raises(CheckpointError, match=rf"step_20\.ckpt.*{told}"):
        read_checkpoint(path)
    with pytest.raises(CheckpointError, match=told):
        network_weights(path, "ema")
    copy = tmp_path / "copies" / "step_10.ckpt"  # as init_from may name it
    copy.parent.mkdir()
    path.rename(copy)
    assert network_weights(copy, "ema").keys() == {"a"}


def test_settings_of_a_checkpoint_that_hold_themselves_are_refused(tmp_path):
    config: dict = {**CONFIG}
    config["model"] = config
    with pytest.raises(CheckpointError, match="holds itself"):
        read_checkpoint(of_a_run(tmp_path, config=config))


def test_what_a_resumed_run_may_change_keeps_its_checkpoints(tmp_path):
    path = of_a_run(tmp_path, config={**CONFIG, "trainer": {"a": 2}, "paths": {"data_root": "elsewhere"}})
    assert read_checkpoint(path)["metadata"]["step"] == 20
    (tmp_path / "config.yaml").write_text("damaged: [")  # told by whoever needs it: the weights can still be had
    assert read_checkpoint(path)["metadata"]["step"] == 20


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("callbacks", {"Telemetry": {"seconds": "x"}}, r"callbacks\.Telemetry\.seconds must be a number"),
        ("callbacks", {"Telemetry": {"seconds": 1e300}}, r"seconds must be a number"),
        ("callbacks", {"Telemetry": {"replaced": [1]}}, r"callbacks\.Telemetry\.replaced must be a whole number"),
        ("callbacks", {"Telemetry": {"replaced": 10**30}}, r"replaced must be a whole number"),
        ("pytorch-lightning_version", 5, "pytorch-lightning_version must be a text"),
        ("pytorch-lightning_version", "0.0.1", r"of Lightning '0\.0\.1'"),
        ("pytorch-lightning_version", "2.x", r"of Lightning '2\.x'"),
    ],
)
def test_plain_values_that_no_run_goes_on_from_are_told_with_their_place(tmp_path, name, value, told):
    path = saved(tmp_path / "step_20.ckpt", network__a=1.0)
    torch.save({**torch.load(path), name: value}, path)
    with pytest.raises(CheckpointError, match=rf"step_20\.ckpt cannot be read .*{told}"):
        read_checkpoint(path)


def test_plain_values_as_they_are_written_are_read(tmp_path):
    path = saved(tmp_path / "step_20.ckpt", network__a=1.0)
    schedule = {"last_epoch": 1, "lr_lambdas": [None], "base_lrs": [0.1]}
    callbacks = {"Telemetry": {"seconds": 1.5, "replaced": 0}, "Another": {"a": [1]}}
    versions = ("2.0.0", "2.6.5.post0", "2.7.0rc1", "3.0.0.dev20260101+abc")
    for version in versions:
        content = {"callbacks": callbacks, "lr_schedulers": [schedule], "pytorch-lightning_version": version}
        torch.save({**torch.load(path), **content}, path)
        assert read_checkpoint(path).items() >= content.items()
