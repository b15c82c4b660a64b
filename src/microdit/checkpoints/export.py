"""Weights in one safetensors file, for others to read and for `LatentDiffusion.save`, with a checksum inside."""

import difflib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from microdit.checkpoints.reading import CheckpointError, latest_checkpoint, network_weights
from microdit.files import partial_name, refusal_in, room_for, size_of_file
from microdit.runs.folder import checkpoint_step, is_checkpoint

LONGEST_LIST = 1 << 23  # bytes of a file's header; a tensor takes 100, and costs as much as ten thousand numbers
CHECKSUM = "sha256"  # in the file's metadata: of all tensors, by `checksum_of`
SHA256 = re.compile(r"[0-9a-f]{64}")
OURS = {"step", "weights"}  # what `export_weights` says beside it


def export_weights(run: Path, weights: str = "ema", output: Path | None = None) -> Path:
    """Writes the network of a run (its newest checkpoint) or of one checkpoint as safetensors; returns the file's path.

    The keys are those of the released checkpoints, buffers included. `weights`: "ema" for the moving average where
    there is one, "raw" for the trained weights. Raises CheckpointError for what cannot be read.
    """
    checkpoint = run if is_checkpoint(run) else latest_checkpoint(run)
    step = checkpoint_step(checkpoint)
    output = output or checkpoint.parent.parent / f"{weights}_step_{step:07d}.safetensors"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_weights(network_weights(checkpoint, weights), output, {"step": str(step), "weights": weights})
    return output


def write_weights(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes tensors by name, whole or not at all, with `metadata` and their checksum. NoRoomError on a full disk."""
    state = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    partial = partial_name(path)
    partial.unlink(missing_ok=True)
    try:
        with room_for(path):
            save_file(state, partial, metadata={**metadata, CHECKSUM: checksum_of(state)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file. Raises CheckpointError where it is damaged: by the checksum that
    `write_weights` leaves; files of others have none."""
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
        raise CheckpointError(f"{path} cannot be read ({error}); download it again, or export it anew") from error
    except (RuntimeError, MemoryError) as error:
        raise (refusal_in(error) or error) from None
    told = metadata.get(CHECKSUM)
    lost = told is None and (metadata.keys() >= OURS or any(is_checksum(*said) for said in metadata.items()))
    if lost or (told is not None and told != checksum_of(state)):
        raise CheckpointError(
            f"{path} is damaged: its tensors are not those that were written; download it again, or export it anew"
        )
    return state


def is_checksum(name: str, value: str) -> bool:
    """Whether this is what `write_weights` left, under a name that was damaged."""
    return SHA256.fullmatch(value) is not None and bool(difflib.get_close_matches(name, [CHECKSUM]))


def checksum_of(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and numbers of tensors on the CPU, in the order of their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
