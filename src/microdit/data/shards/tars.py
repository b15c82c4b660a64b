"""Tars: finding the members of any, and writing plain WebDataset ones, byte for byte the same for the same samples."""

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float16
from webdataset.writer import TarWriter

from microdit.files import size_of_file

BLOCK = 512


LARGEST_HEADER = 1 << 16  # bytes of a longer name, or of what else is told of a file or of all that follow
LONGEST_NAME = 4096  # characters, as for the system
MOST_GLOBAL_HEADERS = 100


class TarError(ValueError):
    """A tar cannot be read to its end; the message names the file, the byte and the cause."""


class TarMember(NamedTuple):
    """A regular file in a tar: its name without leading `./`, where its bytes start, and how many they are."""

    name: str
    offset: int
    length: int


class Headers(io.FileIO):
    """A tar whose headers are read. TarError for one that is longer than any."""

    def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes."""
        if size > LARGEST_HEADER:
            raise TarError(
                f"{self.name}: a header of {size:,} bytes at byte {self.tell()}, which no tar of samples has"
            )
        return super().read(size)


def tar_members(path: Path) -> Iterator[TarMember]:
    """Every regular file of an uncompressed tar in order (ustar, GNU long names, PAX). TarError at the first damage."""
    end = size_of_file(path)
    position = 0
    try:
        # Not "r:*": a compressed tar has no positions to read at.
        with Headers(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                if tar.offset <= position or member.offset_data + member.size > end:
                    raise TarError(f"{path}: cut short or damaged in {member.name!r} at byte {member.offset}")
                position = tar.offset
                vars(tar)["members"].clear()  # tarfile would keep all of them, each with what a global header says
                if len(tar.pax_headers) > MOST_GLOBAL_HEADERS:
                    raise TarError(f"{path}: {len(tar.pax_headers):,} global headers, which no tar of samples has")
                if any(name.startswith("GNU.sparse") for name in tar.pax_headers):
                    raise TarError(f"{path}: a global header tells of holes in files, which are those of one file")
                if len(member.name) > LONGEST_NAME:
                    raise TarError(f"{path}: a name of {len(member.name):,} characters at byte {member.offset}")
                if member.isreg() and not member.issparse():
                    yield TarMember(member.name.removeprefix("./"), member.offset_data, member.size)
            # tarfile takes a damaged header for the end of the archive; the true end is a block of zeros.
            file.seek(tar.offset)
            if file.read(BLOCK) != bytes(BLOCK):
                raise TarError(f"{path}: cut short, or a damaged header at byte {tar.offset}")
    except TarError:
        raise
    except (tarfile.TarError, ValueError, OverflowError, EOFError, IndexError, RecursionError) as error:
        raise TarError(f"{path}: no readable uncompressed tar after byte {position} ({error})") from error


@dataclass(frozen=True)
class LatentSample:
    """One row of a latent shard: `latents` by resolution in pixels (already scaled), one embedding for each caption.
    `views`: latents of further squares of the same picture. `features` of the places of the picture where they were
    asked for. `quality`, from 0 to 1, where the source has it."""

    key: str
    latents: Mapping[int, Float16[np.ndarray, "c h w"]]
    captions: Sequence[Float16[np.ndarray, "l d"]]
    record: Mapping[str, object]
    views: Sequence[Mapping[int, Float16[np.ndarray, "c h w"]]] = ()
    features: Float16[np.ndarray, "c h w"] | None = None
    quality: float | None = None


FEATURES_FIELD, QUALITY_FIELD = "features.npy", "quality.npy"


def caption_field(number: int) -> str:
    """The field of an image's caption: `caption.npy`, then `caption_1.npy`, ..."""
    return f"caption_{number}.npy" if number else "caption.npy"


def latents_field(resolution_px: int, view: int = 0) -> str:
    """The field of an image's latents at a resolution in pixels: `latents_256.npy`, of its second square
    `latents_256_1.npy`, ..."""
    return f"latents_{resolution_px}_{view}.npy" if view else f"latents_{resolution_px}.npy"


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a `.npy` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def latent_fields(sample: LatentSample) -> dict[str, str | bytes]:
    """A latent sample as WebDataset fields."""
    fields: dict[str, str | bytes] = {"__key__": sample.key, "json": json_bytes(sample.record)}
    for view, ours in enumerate((sample.latents, *sample.views)):
        fields |= {latents_field(resolution, view): npy_bytes(latents) for resolution, latents in ours.items()}
    fields |= {} if sample.features is None else {FEATURES_FIELD: npy_bytes(sample.features)}
    if sample.quality is not None:
        fields[QUALITY_FIELD] = npy_bytes(np.array([sample.quality], np.float16))
    fields |= {caption_field(number): npy_bytes(caption) for number, caption in enumerate(sample.captions)}
    return fields


def json_bytes(record: Mapping[str, object]) -> bytes:
    """A record as JSON in UTF-8; what is no UTF-8, as in the name of a file, as JSON's own escapes."""
    return json.dumps(record, ensure_ascii=False, sort_keys=True).encode("utf-8", "backslashreplace")


def write_tar(file: BinaryIO, samples: Iterable[Mapping[str, str | bytes]]) -> int:
    """Write samples as a tar without times or owners of this machine; returns their number."""
    count = 0
    with TarWriter(file, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
        for sample in samples:
            writer.write(dict(sample))
            count += 1
    return count
