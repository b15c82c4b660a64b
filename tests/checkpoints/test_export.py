"""Weights for others."""

import errno
import json
import os
import random
import struct
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from microdit.checkpoints.export import export_weights, learned_objective, read_weights, write_weights
from microdit.checkpoints.reading import CheckpointError, load_weights, network_weights
from microdit.checkpoints.released import read_released
from microdit.files import NoRoomError
from microdit.kinds import SettingsError
from microdit.pipeline import objective_of


def checkpoint(run):
    path = run / "checkpoints" / "step_0000012.ckpt"
    path.parent.mkdir(parents=True)
    state = {"network.a": torch.arange(6.0).view(2, 3).T, "network.b": torch.ones(1), "ema.a": torch.zeros(3, 2)}
    torch.save({"state_dict": {**state, "ema.b": torch.full((1,), 5.0)}}, path)
    return path


def test_the_average_or_the_raw_weights_are_written_with_released_names(tmp_path):
    path = checkpoint(tmp_path)
    for run, weights in ((tmp_path, "ema"), (path, "raw")):
        written = export_weights(run, weights)
        assert written == tmp_path / f"{weights}_step_0000012.safetensors"
        with safe_open(written, "pt") as file:
            assert file.metadata().items() >= {"step": "12", "weights": weights}.items()
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        expected = network_weights(path, weights)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert export_weights(path, output=tmp_path / "new" / "a.safetensors").is_file()


FLOW = {"_target_": "microdit.objectives.rectified_flow.RectifiedFlow", "time_shift": 2.0}


def test_the_file_says_what_its_network_learned(tmp_path):
    path = checkpoint(tmp_path)
    assert learned_objective(export_weights(path)) is None  # a checkpoint whose run does not say
    (tmp_path / "pipeline.json").write_text(json.dumps({"model": {}, "objective": FLOW}))
    for run, weights in ((tmp_path, "ema"), (path, "raw")):
        written = export_weights(run, weights)
        assert learned_objective(written) == FLOW
        assert objective_of(written) == FLOW["_target_"]
    assert learned_objective(tmp_path / "a.pt") is None
    (tmp_path / "pipeline.json").write_text(json.dumps({"model": {}, "sigma_data": 0.7}))  # of a run of before
    assert learned_objective(export_weights(path)) == {"_target_": "microdit.objectives.edm.EDM", "sigma_data": 0.7}


@pytest.mark.parametrize("damage", [(b"rectified_flow", b"rectified_flaw"), (b'objective":', b'objectivf":')])
def test_another_objective_than_was_written_is_noticed(tmp_path, damage):
    path = checkpoint(tmp_path)
    (tmp_path / "pipeline.json").write_text(json.dumps({"model": {}, "objective": FLOW}))
    written = export_weights(path)
    assert read_weights(written).keys() == {"a", "b"}
    written.write_bytes(written.read_bytes().replace(*damage))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_weights(written)


@pytest.mark.parametrize("told", ["{", "[1]", "3", '"flow"'])
def test_an_objective_that_is_none_is_refused_with_the_file_named(tmp_path, told):
    write_weights({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"objective": told})
    with pytest.raises(CheckpointError, match=r"a\.safetensors (cannot be read|says that its network learned)"):
        learned_objective(tmp_path / "a.safetensors")


@pytest.mark.parametrize("linked", ["checkpoints", "checkpoints/step_0000012.ckpt"])
def test_no_weights_from_elsewhere_are_written_into_a_run_through_its_links(tmp_path, linked):
    own, theirs = checkpoint(tmp_path / "own"), tmp_path / "theirs"
    (theirs / linked).parent.mkdir(parents=True)
    (theirs / linked).symlink_to(tmp_path / "own" / linked)
    for run in (theirs, theirs / "checkpoints" / own.name):
        with pytest.raises(SettingsError, match=r"is a link to .*own"):
            export_weights(run)
    assert sorted(path.suffix for path in theirs.rglob("*.safetensors")) == []
    (tmp_path / "link.ckpt").symlink_to(own)  # which somebody names who knows what it is
    assert network_weights(tmp_path / "link.ckpt", "raw").keys() == {"a", "b"}


@pytest.mark.parametrize("seed", range(40))
def test_any_flipped_bit_or_lost_end_of_exported_weights_is_noticed(tmp_path, seed):
    written, chance = export_weights(checkpoint(tmp_path)), random.Random(seed)
    expected, content = read_weights(written), bytearray(written.read_bytes())
    if seed % 4:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    else:
        del content[chance.randrange(len(content)) :]
    written.write_bytes(content)
    try:
        found, told = read_weights(written), str(written)
    except CheckpointError as error:
        found, told = expected, str(error)
    assert str(written) in told
    assert found.keys() == expected.keys()  # what says which step it is has no part in the numbers
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("metadata", [{}, {"step": "12", "weights": "ema"}])
@pytest.mark.parametrize("damaged", [b"sha257", b"rha256", b"sha2_6"])
def test_a_checksum_whose_name_is_damaged_still_counts(tmp_path, metadata, damaged):
    path = tmp_path / "a.safetensors"
    write_weights({"a": torch.ones(2)}, path, metadata)
    path.write_bytes(path.read_bytes().replace(b"sha256", damaged))
    with pytest.raises(CheckpointError, match="is damaged"):
        read_weights(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"sshs_model_hash": "0" * 64}, {"step": "12"}])
def test_files_of_others_have_no_checksum_and_are_read(tmp_path, metadata):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", metadata)
    assert read_weights(tmp_path / "a.safetensors")["a"].tolist() == [1, 1]


def test_a_file_that_may_not_be_read_is_not_called_absent(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    write_weights({"a": torch.ones(2)}, path, {})

    def refused(*given, **named):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refused)
    for read in (read_weights, read_released):
        with pytest.raises(PermissionError, match=r"a\.safetensors"):
            read(path)


def test_a_file_of_names_without_numbers_is_refused_before_each_becomes_a_tensor(tmp_path):
    nothing = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = "{" + ",".join(f'"{number:x}":{nothing}' for number in range(150_000)) + "}"
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode())
    with pytest.raises(CheckpointError, match=r"its list of tensors has 8,\d+,\d+ bytes"):
        read_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_what_are_no_floating_point_numbers_are_no_weights(tmp_path, dtype):
    layer = torch.nn.Linear(1, 1)
    state = {"weight": torch.ones(1, 1, dtype=dtype), "bias": torch.zeros(1)}
    for into_nothing in (False, True):
        with pytest.raises(CheckpointError, match=rf"a file holds no weights in weight \({dtype}\)"):
            load_weights(layer, state, "a file", into_nothing)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"a\.pt holds no weights in weight \({dtype}\)"):
        read_released(tmp_path / "a.pt")


def test_two_names_of_one_tensor_are_two_tensors_in_the_file(tmp_path):
    one = torch.arange(6.0).view(2, 3)
    write_weights({"a": one, "b": one, "c": one.mT}, tmp_path / "a.safetensors", {})
    assert all(
        torch.equal(value, one) for name, value in read_weights(tmp_path / "a.safetensors").items() if name < "c"
    )


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_what_the_system_refuses_is_told_as_it_says(tmp_path, monkeypatch, number):
    def refused(*given, **named):
        raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(number)} (os error {number})")

    monkeypatch.setattr("microdit.checkpoints.export.save_file", refused)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        write_weights({"a": torch.ones(1)}, tmp_path / "a.safetensors", {})
    assert isinstance(raised.value, NoRoomError) == (number == errno.ENOSPC)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        write_weights({"a": torch.ones(1)}, tmp_path / "nowhere" / "a.safetensors", {})
