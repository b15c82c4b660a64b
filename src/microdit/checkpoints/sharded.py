"""Checkpoints that are folders: tensors in parts that many processes wrote, everything else in two small files.

`*.distcp` and `.metadata` are PyTorch's distributed checkpoint (DCP), `meta.pt` is what is no tensor, `metadata.json`
says what the checkpoint is of and holds a checksum of every other file. Tensors are named `state_dict.NAME` for what
the module holds and `optimizer.PARAMETER.NAME` for the optimizer's state.
"""

import io
import math
import pickle
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.state_dict_loader import load

from microdit.checkpoints.archive import check_growth, check_torch_archive, operations
from microdit.files import read_json, write_json
from microdit.runs.folder import SHARDED_MARK

METADATA_FILE = "metadata.json"
CHUNK_BYTES = 1 << 24
MOST_SIDES, LONGEST_SIDE = 16, 1 << 40
# All that DCP's list of tensors is made of, beside types of tensors: reading it cannot run anything else. A dotted name
# would reach through a module into what it has imported, so each is compared whole.
LISTS = ("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata")
PARTS = ("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING")
HARMLESS = {
    *(("torch.distributed.checkpoint.metadata", name) for name in LISTS + PARTS),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
}


InPython: Any = pickle._Unpickler  # type: ignore[attr-defined]


class HarmlessUnpickler(InPython):
    """Unpickles DCP's list of tensors and refuses everything that is no part of it.

    In Python, because what a pickle does to objects has to be looked at as well: it could give a class other
    attributes, and with them the whole process.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(InPython.dispatch)

    def load_build(self) -> None:
        holder, state = self.stack[-2:]
        of_lists = type(holder).__module__ == Metadata.__module__ or type(holder).__name__ == "_StorageInfo"
        names = isinstance(state, dict) and all(isinstance(name, str) for name in state)
        if not of_lists or not (names or isinstance(holder, TensorProperties)):
            raise pickle.UnpicklingError(f"it changes a {type(holder).__name__}, which is no part of a checkpoint")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or (module, name) in HARMLESS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a checkpoint")


class HarmlessReader(FileSystemReader):
    """DCP's reader for folders that may come from elsewhere."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The list of tensors. Raises ValueError where it tells of files outside its folder, or of more numbers than
        the files hold: no memory is taken for those."""
        listed = (Path(self.path) / ".metadata").read_bytes()
        if any(operation in ("BYTEARRAY8", "NEXT_BUFFER", "EMPTY_SET") for operation, _ in operations(listed)):
            raise ValueError("its .metadata has what no list of tensors has")
        check_growth(listed)
        metadata = HarmlessUnpickler(io.BytesIO(listed)).load()
        check_parts(metadata, Path(self.path))
        check_archives(metadata, Path(self.path))
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def check_parts(metadata: Metadata, folder: Path) -> None:
    """Raises ValueError for a list of tensors that its folder's own files cannot hold."""
    if not isinstance(metadata, Metadata):
        raise ValueError(f"its .metadata is a {type(metadata).__name__}")
    held = 0
    for name in {part.relative_path for part in (metadata.storage_data or {}).values()}:
        if Path(name).name != name or not (folder / name).is_file() or (folder / name).is_symlink():
            raise ValueError(f"its .metadata names {name}, which is no file of its folder")
        held += (folder / name).stat().st_size
    if any(getattr(part, "transform_descriptors", None) for part in (metadata.storage_data or {}).values()):
        raise ValueError("its .metadata names transformed files, which are not written here")
    kinds = {
        name: kind for name, kind in metadata.state_dict_metadata.items() if isinstance(kind, TensorStorageMetadata)
    }
    if len(kinds) != len(metadata.state_dict_metadata):
        raise ValueError("its .metadata tells of something that is no tensor")
    shapes = [shape for kind in kinds.values() for shape in (kind.size, *(chunk.sizes for chunk in kind.chunks))]
    if any(len(shape) > MOST_SIDES or any(not 0 <= side < LONGEST_SIDE for side in shape) for shape in shapes):
        raise ValueError("its .metadata tells of a tensor with sides that no tensor has")
    told = sum(math.prod(kind.size) * kind.properties.dtype.itemsize for kind in kinds.values())
    if told > held:
        raise ValueError(f"its .metadata tells of {told:,} bytes of tensors, its files have {held:,}")
    for name, kind in kinds.items():
        if sum(math.prod(chunk.sizes) for chunk in kind.chunks) != math.prod(kind.size):
            raise ValueError(f"its .metadata does not tell where all of {name} is")
        check_chunks(name, kind, metadata.storage_data)


def check_chunks(name: str, kind: TensorStorageMetadata, places: Mapping[MetadataIndex, Any]) -> None:
    """Raises ValueError where parts of a tensor are told of twice, or have no place, or one that is too small."""
    chunks = {MetadataIndex(name, chunk.offsets): chunk for chunk in kind.chunks}
    if len(chunks) < len(kind.chunks):
        raise ValueError(f"its .metadata tells of parts of {name} twice")
    itemsize = kind.properties.dtype.itemsize
    for index, chunk in chunks.items():
        if index not in places or places[index].length < math.prod(chunk.sizes) * itemsize:
            raise ValueError(f"its .metadata does not tell where all of {name} is")


def check_archives(metadata: Metadata, folder: Path) -> None:
    """Raises ValueError where a tensor's bytes are no torch file of their own that is read as it lies there."""
    parts: dict[str, list[tuple[int, int]]] = {}
    for part in (metadata.storage_data or {}).values():
        parts.setdefault(part.relative_path, []).append((part.offset, part.length))
    for name, within in parts.items():
        size, end = (folder / name).stat().st_size, 0
        with (folder / name).open("rb") as file:
            for offset, length in sorted(within):
                if not end <= offset <= offset + length <= size:
                    raise ValueError(f"its .metadata tells of bytes that {name} does not have, or of some twice")
                check_torch_archive(file, offset, length)
                end = offset + length


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
    tensors = {name: torch.zeros(kind.size, dtype=kind.properties.dtype) for name, kind in shapes if wanted(name)}
    if tensors:
        read_into(tensors, folder, alone=True)
    return tensors


def write_closing_files(folder: Path, rest: dict[str, Any], metadata: dict[str, Any]) -> None:
    """What makes a folder of tensors a checkpoint: meta.pt, and metadata.json with the checksums of all files."""
    torch.save(rest, folder / SHARDED_MARK)
    files = {path.name: checksum(path) for path in sorted(folder.iterdir()) if path.name != METADATA_FILE}
    write_json(folder / METADATA_FILE, {**metadata, "files": files})  # `complete` sees that it is on the disk


def damaged_files(folder: Path) -> list[str]:
    """Names of files that are missing or not what they were when written, and of those that nothing tells of.

    ValueError, OSError: metadata.json is damaged, or tells of files elsewhere.
    """
    files = read_json(folder / METADATA_FILE, "take another checkpoint").get("files")
    if not isinstance(files, dict) or any(Path(name).name != name for name in files):
        raise ValueError(f"{METADATA_FILE} lists no files of this folder")
    untold = sorted({path.name for path in folder.iterdir()} - {*files, METADATA_FILE})
    there = {name for name in files if (folder / name).is_file() and not (folder / name).is_symlink()}
    return [*(name for name, was in files.items() if name not in there or checksum(folder / name) != was), *untold]


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
