"""Checkpoints of many processes are read whole or refused, and nothing in them runs."""

import json
import pickle
import random
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from microdit.checkpoints.reading import CheckpointError, checkpoint_metadata, network_weights, read_checkpoint
from microdit.checkpoints.sharded import METADATA_FILE, checksum, read_into, read_tensors, write_closing_files
from microdit.runs.folder import SHARDED_MARK, is_checkpoint

TENSORS = {
    "state_dict.network.a": torch.arange(6.0).view(2, 3),
    "state_dict.ema.a": torch.ones(2, 3, dtype=torch.bfloat16),
    "optimizer.network.a.exp_avg": torch.full((2, 3), 2.0),
    "optimizer.network.a.step": torch.tensor(7.0),
}
REST = {"global_step": 7, "parameter_names": ["network.a"], "optimizer_groups": [{"lr": 0.1, "params": [0]}]}


def written(folder: Path) -> Path:
    path = folder / "checkpoints" / "step_0000007.ckpt"
    path.mkdir(parents=True)
    dcp.save(TENSORS, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
    write_closing_files(path, REST, {"step": 7})
    return path


def test_a_folder_reads_as_the_file_that_one_process_writes(tmp_path):
    path = written(tmp_path)
    assert is_checkpoint(path)
    assert not is_checkpoint(tmp_path)
    content = read_checkpoint(path)
    assert torch.equal(content["state_dict"]["network.a"], TENSORS["state_dict.network.a"])
    (optimizer,) = content["optimizer_states"]
    assert torch.equal(optimizer["state"][0]["exp_avg"], torch.full((2, 3), 2.0))
    assert (optimizer["param_groups"][0]["lr"], content["global_step"]) == (0.1, 7)
    assert checkpoint_metadata(path)["step"] == 7
    assert network_weights(path, "ema")["a"].dtype == torch.bfloat16


@pytest.mark.parametrize("seed", range(20))
def test_any_flipped_byte_of_the_content_is_noticed(tmp_path, seed):
    path, chance = written(tmp_path), random.Random(seed)
    file = chance.choice(sorted(other for other in path.iterdir() if other.name != METADATA_FILE))
    content = bytearray(file.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"step_0000007\.ckpt cannot be read"):
        read_checkpoint(path)


def test_a_missing_part_is_named(tmp_path):
    path = written(tmp_path)
    (part,) = path.glob("*.distcp")
    part.unlink()
    with pytest.raises(CheckpointError, match=part.name):
        read_checkpoint(path)


class Mischief:
    """Unpickling it would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_nothing_in_the_list_of_tensors_runs(tmp_path):
    path = written(tmp_path)
    (path / ".metadata").write_bytes(pickle.dumps(Mischief(tmp_path / "made")))
    write_closing_files(path, REST, {"step": 7})  # by somebody who can make checksums
    with pytest.raises(CheckpointError, match="no part of a checkpoint"):
        read_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        read_tensors(path)
    assert not (tmp_path / "made").exists()


def test_a_tensor_that_no_part_holds_is_an_ordinary_error(tmp_path):
    path = written(tmp_path)
    with pytest.raises(RuntimeError, match="absent"):  # torch raises a BaseException, which nobody catches
        read_into({"absent": torch.zeros(1)}, path, alone=True)


def test_nothing_in_the_rest_runs(tmp_path):
    path = written(tmp_path)
    torch.save({**REST, "extra": Mischief(tmp_path / "made")}, path / SHARDED_MARK)
    record = json.loads((path / METADATA_FILE).read_text())
    record["files"][SHARDED_MARK] = checksum(path / SHARDED_MARK)
    (path / METADATA_FILE).write_text(json.dumps(record))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not (tmp_path / "made").exists()
