"""How long until the first batch of 37 million samples, and after a jump: `python benchmarks/first_batch.py`.

The index is real in size and content (4,600 shards of 8,043 samples); every shard is a link to the same small tar, and
every row points at one of its samples.
"""

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from microdit.data.shards.columns import write_columns
from microdit.data.shards.description import LatentDescription, write_description
from microdit.data.shards.index import index_shard
from microdit.data.shards.tars import LatentSample, latent_fields, write_tar
from microdit.data.stream.opening import open_mix

SHARDS, ROWS, BATCH, DRAWN = 4_600, 8_043, 64, 256
CAPTION, LATENTS = (77, 1024), (4, 32, 32)


def simulate(folder: Path) -> None:
    """Write one tar, links to it, and the index of all."""
    zeros = [np.zeros(shape, np.float16) for shape in (LATENTS, CAPTION)]
    tar = folder / "drawn"
    with tar.open("wb") as file:
        write_tar(
            file, (latent_fields(LatentSample(f"{n:011d}", {256: zeros[0]}, [zeros[1]], {})) for n in range(DRAWN))
        )
    for shard in range(SHARDS):
        os.symlink(tar, folder / f"{shard:05d}.tar")
    one, total = index_shard(tar), SHARDS * ROWS
    rows = np.tile(np.arange(ROWS) % DRAWN, SHARDS)

    def columns() -> Iterator[tuple[str, np.ndarray]]:
        yield "shards", np.array([f"{shard:05d}.tar" for shard in range(SHARDS)])
        yield "shard_rows", np.full(SHARDS, ROWS)
        yield "shard_bytes", np.full(SHARDS, tar.stat().st_size)
        yield "keys", np.tile(one["keys"][:11], total)
        yield "key_ends", np.arange(1, total + 1) * 11
        for name in filter(lambda name: "/" in name, one):
            yield name, one[name][rows]

    write_columns(folder / "index.npz", columns())
    write_description(
        folder, LatentDescription("many", "train", None, None, 4, 8, [256], *CAPTION, "full", total, SHARDS)
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        simulate(folder)
        started = time.perf_counter()
        source = [{"name": "many", "folder": str(folder)}]
        stream = open_mix(source, resolution_px=256, seed=0, autoencoder="any", text_encoder="any")
        opened = time.perf_counter()
        stream.__getitems__(range(BATCH))
        first = time.perf_counter()
        stream.__getitems__(range(30_000_000, 30_000_000 + BATCH))
        jumped = time.perf_counter()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        print(f"{len(stream):,} samples, index of {(folder / 'index.npz').stat().st_size / 1e9:.1f} GB")
        print(
            f"open {opened - started:.3f} s, first batch {first - started:.3f} s, a jump of 30 M {jumped - first:.3f} s"
        )
        print(f"largest memory of the process, making the index included: {memory:,.0f} MB")


if __name__ == "__main__":
    main()
