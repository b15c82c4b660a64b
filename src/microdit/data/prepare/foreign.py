"""Latent shards from elsewhere: index them, and describe them as far as they describe themselves."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from microdit.data.shards.description import DESCRIPTION_NAME, LatentDescription, read_description, write_description
from microdit.data.shards.index import INDEX_NAME, ShardIndex, index_folder
from microdit.files import alone_in
from microdit.progress import Report, silent

FIRST_VIEW = re.compile(r"latents_\d+\.npy")
TOLD_BY_TARS = "latent_channels resolutions_px caption_length caption_width caption_storage samples shards"


class NoLatentsError(ValueError):
    """A folder of tars holds no latents and captions that training could read; the message says what is in it."""


def index_foreign(folder: Path, on_corrupt: str = "error", progress: Report = silent) -> str:
    """Index a folder of tars and write its `dataset.json`; returns what was found, as text. What a `dataset.json` that
    is there tells beyond the tars, such as their encoders, is kept.

    TarError for a damaged tar unless `on_corrupt` is "skip"; FileNotFoundError, NoLatentsError where there is nothing
    to read.
    """
    folder = folder.expanduser()
    samples, notes = index_folder(folder, on_corrupt, progress)
    index = ShardIndex(folder / INDEX_NAME)
    with alone_in(folder):
        kept = read_description(folder / DESCRIPTION_NAME) if (folder / DESCRIPTION_NAME).exists() else None
        found = kept if kept and not index.rows else describe(folder, index, kept)
        if found != kept:
            write_description(folder, found)
    lines = [f"{folder}: {samples} samples in {len(index.shards)} shards, fields {', '.join(index.fields)}"]
    lines.append(f"latents at {found.resolutions_px} px, captions {found.caption_length} x {found.caption_width}")
    return "\n".join([*lines, *(f"damaged: {note}" for note in notes)])


def describe(folder: Path, index: ShardIndex, kept: LatentDescription | None = None) -> LatentDescription:
    """What an index alone tells, beside what is `kept` of an earlier description. NoLatentsError without latents or
    captions."""
    latents = [name for name in index.fields if FIRST_VIEW.fullmatch(name)]
    if not latents or "caption.npy" not in index.fields:
        raise NoLatentsError(
            f"{folder} holds {', '.join(index.fields) or 'no known fields'}: training reads "
            "KEY.latents_RESOLUTION.npy and "
            "KEY.caption.npy (half precision). For pictures, use: python prepare.py source=webdataset "
            f"source.path={folder}"
        )
    latent_shape, caption_shape = index.usual_shape(latents[0]), index.usual_shape("caption.npy")
    if len(latent_shape) != 3 or len(caption_shape) != 2:
        raise NoLatentsError(
            f"{folder}: {latents[0]} must be [channels, height, width] and caption.npy [length, width], both half "
            "precision "
            f"(<f2); found {latent_shape or 'none of that type'} and {caption_shape or 'none of that type'}"
        )
    captions = [index.column(name, "shape") for name in index.fields if name.startswith("caption")]
    lengths = np.concatenate([shapes[shapes[:, 1] == caption_shape[1], 0] for shapes in captions])
    length = max(int(lengths.max()), kept.caption_length if kept else 0)
    found = LatentDescription(
        name=folder.parent.parent.name,
        split=folder.parent.name,
        autoencoder=None,
        text_encoder=None,
        latent_channels=latent_shape[0],
        downscale=None,
        resolutions_px=sorted(int(name.removeprefix("latents_").removesuffix(".npy")) for name in latents),
        caption_length=length,
        caption_width=caption_shape[1],
        caption_storage="full" if (lengths == length).all() else "trimmed",
        samples=index.rows,
        shards=len(index.shards),
        source={"kind": "elsewhere"},
    )
    return replace(kept, **{name: getattr(found, name) for name in TOLD_BY_TARS.split()}) if kept else found
