"""Weights for others."""

import random

import pytest
import torch
from safetensors import safe_open

from microdit.checkpoints.export import export_weights, read_weights
from microdit.checkpoints.reading import CheckpointError, network_weights


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
