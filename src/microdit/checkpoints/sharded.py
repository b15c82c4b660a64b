"""Checkpoints that are folders: tensors in parts that many processes wrote, everything else in two small files.

`*.distcp` and `.metadata` are PyTorch's distributed checkpoint (DCP), `meta.pt` is what is no tensor, `metadata.json`
says what the checkpoint is of and holds a checksum of every other file. Tensors are named `state_dict.NAME` for what
the module holds and `optimizer.PARAMETER.NAME` for the optimizer's state.
"""

import json
import os
import pickle
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from microdit.runs.folder import SHARDED_MARK

METADATA_FILE = "metadata.json"
CHUNK_BYTES = 1 << 24
# All that DCP's list of tensors is made of, beside types of tensors: reading it cannot run anything else.
HARMLESS = {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


class HarmlessUnpickler(pickle.Unpickler):
    """Unpickles DCP's list of tensors and refuses everything that is no part of it."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or module == "torch.distributed.checkpoint.metadata" or (module, name) in HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint")


class HarmlessReader(FileSystemReader):
    """DCP's reader for folders that may come from elsewhere."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = HarmlessUnpickler(file).load()
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def tensor_shapes(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Name, shape and type of every tensor in a checkpoint."""
    listed = HarmlessReader(folder).read_metadata().state_dict_metadata
    return {name: kind for name, kind in listed.items() if isinstance(kind, TensorStorageMetadata)}


def read_into(tensors: Mapping[str, Tensor], folder: Path, alone: bool) -> None:
    """Fills tensors in place by name; of a sharded one the part that is this rank's. `alone`: no other rank reads.

    Raises RuntimeError for what cannot be read, of any rank.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process.*")
        try:
            load(dict(tensors), storage_reader=HarmlessReader(folder), no_dist=alone)
        except CheckpointException as error:
            raise RuntimeError(str(first_of(error))) from error


def first_of(failure: CheckpointException) -> BaseException:
    """The first rank's error, instead of the tracebacks of all. DCP's exception is no Exception, so few catch it."""
    return next(iter(failure.failures.values()))[0]


def read_tensors(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """Whole tensors, on the CPU, of every name that is `wanted`."""
    shapes = tensor_shapes(folder).items()
    tensors = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in shapes if wanted(name)}
    if tensors:
        read_into(tensors, folder, alone=True)
    return tensors


def write_closing_files(folder: Path, rest: dict[str, Any], metadata: dict[str, Any]) -> None:
    """What makes a folder of tensors a checkpoint: meta.pt, and metadata.json with the checksums of all files."""
    torch.save(rest, folder / SHARDED_MARK)
    files = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.name != METADATA_FILE}
    with (folder / METADATA_FILE).open("w") as file:
        json.dump({**metadata, "files": files}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def damaged_files(folder: Path) -> list[str]:
    """Names of files that are missing or not what they were when written. ValueError, OSError: metadata.json is not."""
    files = json.loads((folder / METADATA_FILE).read_text())["files"]
    return [name for name, was in files.items() if not (folder / name).is_file() or checksum(folder / name) != was]


def checksum(path: Path) -> int:
    """The CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            total = zlib.crc32(chunk, total)
    return total


def as_lightning_states(tensors: Mapping[str, Tensor], parameter_names: Iterable[str], groups: list[dict[str, Any]]):
    """(state dict of the module, state of its one optimizer by parameter number) from flat names."""
    module = {name.removeprefix("state_dict."): t for name, t in tensors.items() if name.startswith("state_dict.")}
    state: dict[int, dict[str, Tensor]] = {}
    numbers = {name: number for number, name in enumerate(parameter_names)}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            parameter, _, what = name.removeprefix("optimizer.").rpartition(".")
            state.setdefault(numbers[parameter], {})[what] = tensor
    return module, {"state": state, "param_groups": groups}
