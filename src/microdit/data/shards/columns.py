"""The checksum by which a read finds bytes that are not those the index was made from."""

import errno
import io
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from microdit.files import is_refusal, replacing, size_of_file

WORD = 8
MODULUS = (1 << 64) - 1


def word_sum(buffer: bytes | memoryview | UInt8[np.ndarray, " n"]) -> int:
    """Sum of the little-endian 64-bit words (mod 2^64), the last one padded with zeros.

    It runs at the speed of memory. Any one changed byte changes it, as does a block of zeros or a shifted file unless
    by a chance of 2^-64; words that change places do not, and it is no defence against a forger.
    """
    data = buffer if isinstance(buffer, np.ndarray) else np.frombuffer(buffer, np.uint8)
    tail = data.size % WORD
    if not tail:
        return int(np.add.reduce(data.view("<u8"))) if data.size else 0
    return (word_sum(data[:-tail]) + int.from_bytes(data[-tail:].tobytes(), "little")) & MODULUS


LOCAL_HEADER = 30  # bytes of a zip local file header before its name
NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class ColumnsError(ValueError):
    """A file of columns is no such file; the message names it."""


def write_columns(path: Path, columns: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write uncompressed `.npz`, one column in memory at a time; it appears under its name whole or not at all.

    The same columns give the same bytes. Two processes must not write the same file at once.
    """
    with replacing(path, "wb") as whole, zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for name, column in columns:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, column, allow_pickle=False)


def open_columns(path: Path) -> dict[str, np.ndarray]:
    """Read-only memory maps of all columns of an uncompressed `.npz`: the cost does not grow with their length, and no
    file stays open.

    ColumnsError when the file is damaged, compressed, or holds anything but plain arrays; OSError as the system has it.
    """
    columns, whole = {}, mapped(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ColumnsError(f"{path}: column {member.filename} is compressed; columns are read in place")
                file.seek(member.header_offset)
                header = file.read(LOCAL_HEADER)
                start = member.header_offset + LOCAL_HEADER
                start += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                file.seek(start)
                columns[member.filename.removesuffix(".npy")] = array_in(whole[: start + member.file_size], path, file)
    except ColumnsError:
        raise
    except Exception as error:  # what zipfile and numpy's parser of headers raise on damaged files is not foreseen
        if is_refusal(error):
            raise
        raise ColumnsError(f"{path} is no readable file of columns ({error})") from error
    return columns


def mapped(path: Path) -> UInt8[np.ndarray, " n"]:
    """The bytes of a file, memory-mapped. OSError where the system refuses.

    By torch, because `mmap` holds a descriptor for as long as the map is there, and there is an index a shard.
    """
    if any("\udc80" <= letter <= "\udcff" for letter in str(path)):
        raise ColumnsError(f"{path} is no name in UTF-8, and files of columns need one: rename it")
    size = size_of_file(path)
    path.open("rb").close()  # what the system says of it, which torch does not tell from its own errors
    if not size:
        return np.empty(0, np.uint8)
    try:
        whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8).numpy()
    except RuntimeError as error:
        raise OSError(errno.ENOMEM, f"cannot be mapped ({error})", str(path)) from error
    whole.flags.writeable = False
    return whole


def array_in(whole: UInt8[np.ndarray, " n"], path: Path, file: io.BufferedReader) -> np.ndarray:
    """The `.npy` array that starts in `whole`, the bytes of `path`, where `file` stands."""
    version = np.lib.format.read_magic(file)
    if version not in NPY_HEADERS:
        raise ColumnsError(f"{path}: npy version {version} is not read")
    shape, fortran, dtype = NPY_HEADERS[version](file)
    if (fortran and len(shape) > 1) or dtype.hasobject or not dtype.itemsize:
        raise ColumnsError(f"{path}: holds an array that is not plain rows of numbers")
    if file.tell() + dtype.itemsize * math.prod(shape) > len(whole) or min(shape, default=0) < 0:
        raise ColumnsError(f"{path}: is cut short")
    return np.ndarray(shape, dtype, whole[file.tell() :])
