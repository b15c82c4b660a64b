"""Small latent shards, written by the code that writes them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from microdit.data.shards.description import LatentDescription, write_description
from microdit.data.shards.index import index_folder
from microdit.data.shards.tars import LatentSample, latent_fields, write_tar
from microdit.files import claim

CAPTION_SHAPE = (5, 8)
LATENT_SHAPE = (4, 2, 2)


def latent_sample(shard: int, row: int, captions: int = 1, length: int = CAPTION_SHAPE[0]) -> LatentSample:
    """A sample whose numbers tell where it comes from: latents hold the shard and the row, captions also their
    number."""
    latents = np.full(LATENT_SHAPE, shard, np.float16)
    latents[1:] = row
    embeddings = [
        np.full((length, CAPTION_SHAPE[1]), 100 * shard + row + 0.25 * number, np.float16) for number in range(captions)
    ]
    texts = [f"caption {number} of {shard}/{row}" for number in range(captions)]
    record = {"caption": texts[0]} | ({"captions": texts} if captions > 1 else {})
    return LatentSample(f"{shard:05d}{row:06d}", {32: latents, 64: np.repeat(latents, 2, axis=1)}, embeddings, record)


@pytest.fixture
def write_folder() -> Callable[..., Path]:
    """Writes a folder of latent shards of the given sizes, indexed and described."""

    def write(folder: Path, sizes: Sequence[int], captions: int = 1, storage: str = "full") -> Path:
        folder.mkdir(parents=True)
        for shard, size in enumerate(sizes):
            with claim(folder / f"{shard:05d}.tar") as temporary:
                assert temporary is not None
                with temporary.open("r+b") as file:
                    write_tar(
                        file,
                        (
                            latent_fields(
                                latent_sample(shard, row, captions, (row % 5 + 1) if storage == "trimmed" else 5)
                            )
                            for row in range(size)
                        ),
                    )
        samples, _ = index_folder(folder)
        write_description(
            folder,
            LatentDescription(
                name=folder.name,
                split="train",
                autoencoder="small",
                text_encoder="short",
                latent_channels=LATENT_SHAPE[0],
                downscale=16,
                resolutions_px=[32, 64],
                caption_length=CAPTION_SHAPE[0],
                caption_width=CAPTION_SHAPE[1],
                caption_storage=storage,
                samples=samples,
                shards=len(sizes),
            ),
        )
        return folder

    return write
