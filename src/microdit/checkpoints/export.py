"""Weights in one safetensors file, for others to read and for `LatentDiffusion.save`, with a checksum inside."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microdit.checkpoints.reading import CheckpointError, latest_checkpoint, network_weights
from microdit.files import partial_name, read_json, refusal_in, room_for, size_of_file
from microdit.kinds import shown
from microdit.runs.folder import PIPELINE_FILE, checkpoint_step, is_checkpoint
from microdit.runs.older import todays_pipeline

WEIGHTS_FILE = "weights.safetensors"  # of a saved folder, beside its pipeline.json
LONGEST_LIST = 1 << 23  # bytes of a file's header; a tensor takes 100, and costs as much as ten thousand numbers
CHECKSUM = "sha256"  # in the file's metadata: of all that counts, by `checksum_of`
OF_THE_SYSTEM = re.compile(r"\(os error (\d{1,4})\)")
SHA256 = re.compile(r"[0-9a-f]{64}")
OURS = {"step", "weights"}  # what `export_weights` says beside it
OBJECTIVE = "objective"  # and this, as JSON: what the network learned, where the run says


def export_weights(run: Path, weights: str = "ema", output: Path | None = None) -> Path:
    """Writes the network of a run (its newest checkpoint) or of one checkpoint as safetensors; returns the file's path.

    The keys are those of the released checkpoints, buffers included. `weights`: "ema" for the moving average where
    there is one, "raw" for the trained weights. The file says what the network learned (`learned_objective`), because
    its numbers do not. Raises CheckpointError for what cannot be read.
    """
    checkpoint = run if is_checkpoint(run) else latest_checkpoint(run)
    step = checkpoint_step(checkpoint)
    output = output or checkpoint.parent.parent / f"{weights}_step_{step:07d}.safetensors"
    output.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"step": str(step), "weights": weights}
    described = checkpoint.parent.parent / PIPELINE_FILE
    if described.is_file():
        settings = todays_pipeline(read_json(described, "train.py resume=THE_RUN writes it anew"))
        metadata[OBJECTIVE] = json.dumps(settings["objective"], sort_keys=True)
    write_weights(network_weights(checkpoint, weights), output, metadata)
    return output


def learned_objective(path: Path) -> dict[str, Any] | None:
    """What the network in a file of weights learned, as settings of an objective; None where the file does not say.

    Raises CheckpointError where it says something else, or cannot be read.
    """
    if path.suffix != ".safetensors":
        return None
    size_of_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            told = (file.metadata() or {}).get(OBJECTIVE)
        settings = None if told is None else json.loads(told)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); download it again, or export it anew") from error
    if settings is not None and not isinstance(settings, dict):
        raise CheckpointError(f"{path} says that its network learned {shown(settings)}, which is no objective")
    return settings


def write_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes tensors by name, whole or not at all, with `metadata` and their checksum. NoRoomError on a full disk."""
    state = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    partial = partial_name(path)
    partial.unlink(missing_ok=True)
    try:
        with room_for(path):
            try:
                save_file(state, partial, metadata={**metadata, CHECKSUM: checksum_of(state, metadata)})
            except SafetensorError as error:
                raise as_the_system_says(error, path) from error
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def as_the_system_says(error: SafetensorError, path: Path) -> Exception:
    """The OSError that safetensors has put into a text of its own; any other error of its as it is."""
    found = OF_THE_SYSTEM.search(str(error))
    return error if found is None else OSError(int(found[1]), os.strerror(int(found[1])), str(path))


def read_weights(path: Path, cure: str = "download it again, or export it anew") -> dict[str, Tensor]:
    """The tensors in a safetensors file. Raises CheckpointError, which ends with `cure`, where it is damaged: by the
    checksum that `write_weights` leaves; files of others have none."""
    size_of_file(path)
    with path.open("rb") as file:  # first, because safetensors tells of any refusal that there is no such file
        length = int.from_bytes(file.read(8), "little")
    if LONGEST_LIST < length < path.stat().st_size:
        raise CheckpointError(f"{path} is no network: its list of tensors has {length:,} bytes, and none needs so many")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read ({error}); {cure}") from error
    except (RuntimeError, MemoryError) as error:
        raise (refusal_in(error) or error) from None
    told = metadata.get(CHECKSUM)
    lost = told is None and (metadata.keys() >= OURS or any(is_checksum(*said) for said in metadata.items()))
    if lost or (told is not None and told != checksum_of(state, metadata)):
        raise CheckpointError(f"{path} is damaged: it does not hold what was written; {cure}")
    return state


def is_checksum(name: str, value: str) -> bool:
    """Whether this is what `write_weights` left, under a name that was damaged."""
    return SHA256.fullmatch(value) is not None and bool(difflib.get_close_matches(name, [CHECKSUM]))


def checksum_of(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over what the network learned, if it is said, and names, types, shapes and numbers of tensors on the CPU,
    in the order of their names."""
    total = hashlib.sha256(metadata.get(OBJECTIVE, "").encode())
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
