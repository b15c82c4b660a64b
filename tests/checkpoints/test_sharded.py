"""Checkpoints of many processes are read whole or refused, and nothing in them runs."""

import dataclasses
import json
import pickle
import random
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from microdit.checkpoints.reading import (
    CheckpointError,
    checkpoint_metadata,
    network_weights,
    read_checkpoint,
    read_rest,
)
from microdit.checkpoints.sharded import METADATA_FILE, checksum, read_into, read_tensors, write_closing_files
from microdit.files import write_json
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


def test_a_folder_of_another_step_is_not_taken_for_a_runs_own(tmp_path):
    path = written(tmp_path)
    write_closing_files(path, REST, {"step": 8})
    for read in (read_checkpoint, lambda path: network_weights(path, "raw")):
        with pytest.raises(CheckpointError, match=r"step_0000007\.ckpt holds step 8"):
            read(path)


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


def with_list(path: Path, change) -> Path:
    """The checkpoint with another list of tensors, and checksums that fit, by somebody who can make them."""
    with (path / ".metadata").open("rb") as file:
        listed = pickle.load(file)
    change(listed)
    (path / ".metadata").write_bytes(pickle.dumps(listed))
    write_closing_files(path, REST, {"step": 7})
    return path


def named(module: str, name: str, *arguments: str) -> bytes:
    """A pickle, protocol 4, that calls what a dotted name reaches through a module."""

    def text(value: str) -> bytes:
        return b"\x8c" + bytes([len(value)]) + value.encode()

    return b"\x80\x04" + text(module) + text(name) + b"\x93" + b"".join(map(text, arguments)) + b"\x85R."


@pytest.mark.parametrize(
    "name", ["os.system", "torch.save", "dataclass", "Enum.__class__", "TensorProperties.create_from_tensor"]
)
def test_no_name_reaches_through_the_module_of_the_list(tmp_path, name):
    path = written(tmp_path)
    (path / ".metadata").write_bytes(named("torch.distributed.checkpoint.metadata", name, f"touch {tmp_path}/made"))
    write_closing_files(path, REST, {"step": 7})
    with pytest.raises(CheckpointError, match="no part of a checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "made").exists()


def test_no_class_gets_other_attributes(tmp_path):
    """A pickle's BUILD on a class sets its attributes: a path's parent was the folder that git was started in."""
    path = written(tmp_path)
    attack = b"\x80\x02cpathlib\nPosixPath\nN}X\x06\x00\x00\x00parentX\x04\x00\x00\x00evil\x73\x86b0N."
    (path / ".metadata").write_bytes(attack)
    write_closing_files(path, REST, {"step": 7})
    with pytest.raises(CheckpointError, match="it changes a type, which is no part of a checkpoint"):
        read_checkpoint(path)
    assert Path("a/b").parent == Path("a")


def elsewhere(listed) -> None:
    for key, part in listed.storage_data.items():
        listed.storage_data[key] = dataclasses.replace(part, relative_path="../../../secret")


def larger(listed) -> None:
    for name, kind in listed.state_dict_metadata.items():
        listed.state_dict_metadata[name] = dataclasses.replace(kind, size=torch.Size([1 << 38]))


def changed_chunks(listed, change) -> None:
    name = "state_dict.network.a"
    kind = listed.state_dict_metadata[name]
    listed.state_dict_metadata[name] = dataclasses.replace(kind, chunks=change(kind.chunks))


def many_times(listed) -> None:
    """The same bytes by the thousand, each of which would be read."""
    changed_chunks(listed, lambda chunks: [*chunks, *[dataclasses.replace(chunks[0], sizes=torch.Size([0, 3]))] * 1000])


def under_many_names(listed) -> None:
    first = next(iter(listed.storage_data))
    for number in range(1000):
        listed.storage_data[dataclasses.replace(first, fqn=f"{number}")] = listed.storage_data[first]


def of_no_bytes(listed) -> None:
    """A part that has no place in any file."""
    changed_chunks(listed, lambda chunks: [dataclasses.replace(chunks[0], offsets=torch.Size([1, 0]))])


def in_short_bytes(listed) -> None:
    """Two parts' bytes at the place of one."""
    index = next(index for index in listed.storage_data if index.fqn == "state_dict.network.a")
    listed.storage_data[index] = dataclasses.replace(listed.storage_data[index], length=8)


def of_many_sides(listed) -> None:
    """Whose product would be a number of a million digits."""
    name = next(iter(listed.state_dict_metadata))
    kind = listed.state_dict_metadata[name]
    listed.state_dict_metadata[name] = dataclasses.replace(kind, size=torch.Size([1 << 39] * 17))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (elsewhere, "no file of its folder"),
        (larger, "bytes of tensors"),
        (many_times, "parts of state_dict.network.a twice"),
        (under_many_names, "or of some twice"),
        (of_no_bytes, "does not tell where all of state_dict.network.a is"),
        (in_short_bytes, "does not tell where all of state_dict.network.a is"),
        (of_many_sides, "sides"),
    ],
)
def test_a_list_tells_of_its_own_files_and_of_no_more_than_they_hold(tmp_path, change, said):
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(with_list(written(tmp_path), change))


def test_a_list_of_files_that_are_elsewhere_or_not_listed_is_refused(tmp_path):
    path = written(tmp_path)
    (path / "one_more.distcp").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="one_more"):
        read_checkpoint(path)
    (path / "one_more.distcp").unlink()
    write_json(path / METADATA_FILE, {"files": {"/dev/zero": 0}})
    with pytest.raises(CheckpointError, match="lists no files of this folder"):
        read_checkpoint(path)


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


def test_a_tensor_of_the_rest_that_is_larger_than_its_file_is_refused(tmp_path):
    path = written(tmp_path)
    huge = torch.zeros(1).expand(1 << 31)
    write_closing_files(path, {**REST, "callbacks": {"Telemetry": {"replaced": huge}}}, {"step": 7})
    for read in (read_checkpoint, lambda path: read_rest(path, [])):
        with pytest.raises(CheckpointError, match=r"a tensor of shape \[2147483648\] has 4 bytes"):
            read(path)
