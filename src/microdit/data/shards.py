"""Writing shards: plain WebDataset tars, byte for byte the same for the same samples, never seen half written."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from jaxtyping import Float16
from webdataset.writer import TarWriter


@dataclass(frozen=True)
class LatentSample:
    """One row of a latent shard: `latents` by resolution in pixels (already scaled), one embedding for each caption."""

    key: str
    latents: Mapping[int, Float16[np.ndarray, "c h w"]]
    captions: Sequence[Float16[np.ndarray, "l d"]]
    record: Mapping[str, object]


def caption_field(number: int) -> str:
    """The field of an image's caption: `caption.npy`, then `caption_1.npy`, ..."""
    return f"caption_{number}.npy" if number else "caption.npy"


def latents_field(resolution_px: int) -> str:
    """The field of an image's latents at a resolution in pixels."""
    return f"latents_{resolution_px}.npy"


def npy_bytes(array: np.ndarray) -> bytes:
    """An array as a `.npy` file."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def latent_fields(sample: LatentSample) -> dict[str, str | bytes]:
    """A latent sample as WebDataset fields."""
    fields: dict[str, str | bytes] = {"__key__": sample.key, "json": json_bytes(sample.record)}
    fields |= {latents_field(resolution): npy_bytes(latents) for resolution, latents in sample.latents.items()}
    fields |= {caption_field(number): npy_bytes(caption) for number, caption in enumerate(sample.captions)}
    return fields


def image_fields(key: str, extension: str, image: bytes, captions: Sequence[str]) -> dict[str, str | bytes]:
    """A captioned picture as WebDataset fields, as img2dataset writes them; more than one caption goes to the
    `.json`."""
    fields: dict[str, str | bytes] = {"__key__": key, extension: image, "txt": captions[0].encode()}
    return fields if len(captions) == 1 else fields | {"json": json_bytes({"caption": list(captions)})}


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
