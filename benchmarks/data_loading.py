"""How fast samples come from local shards, against MosaicML Streaming and the plain webdataset pipeline, in one run.

All read the same 6,000 samples of about 200 KB (captions 77 x 1024, latents 4 x 32 x 32 and 4 x 64 x 64, half
precision) in shuffled batches of 64 from a warm page cache, and deliver captions and the latents of 256 px as tensors.
The readers take turns, so that a busy machine is busy for all of them; the median of the rounds counts. Workers are
threads for microdit (its own loader), processes of torch's DataLoader for the others and for "microdit, DataLoader".

MosaicML Streaming needs an older numpy, so it has a virtual environment of its own:
    uv venv /tmp/streaming && uv pip install --python /tmp/streaming/bin/python "mosaicml-streaming==0.13.*"
    python benchmarks/data_loading.py --streaming-python /tmp/streaming/bin/python
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

SAMPLES, SHARDS, BATCH = 6_000, 6, 64
CAPTION, SMALL, LARGE = (77, 1024), (4, 32, 32), (4, 64, 64)


def samples() -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
    """(key, caption, latents at 256 px, latents at 512 px)."""
    random = np.random.default_rng(0)
    caption = random.standard_normal(CAPTION).astype(np.float16)
    for number in range(SAMPLES):
        small, large = (random.standard_normal(shape).astype(np.float16) for shape in (SMALL, LARGE))
        yield f"{number:08d}", np.roll(caption, number), small, large


def write_latent_shards(folder: Path) -> None:
    from microdit.data.prepare.foreign import index_foreign
    from microdit.data.shards.tars import LatentSample, latent_fields, write_tar

    folder.mkdir()
    stream = (
        latent_fields(LatentSample(key, {256: small, 512: large}, [caption], {"caption": key}))
        for key, caption, small, large in samples()
    )
    for shard in range(SHARDS):
        with (folder / f"{shard:05d}.tar").open("wb") as file:
            write_tar(file, islice(stream, SAMPLES // SHARDS))
    index_foreign(folder)


def write_streaming_shards(folder: Path) -> None:
    from streaming import MDSWriter

    columns = {"key": "str", "caption": "bytes", "latents_256": "bytes", "latents_512": "bytes"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=SAMPLES // SHARDS * 205_000) as writer:
        for key, caption, small, large in samples():
            fields = {"caption": caption.tobytes(), "latents_256": small.tobytes(), "latents_512": large.tobytes()}
            writer.write({"key": key, **fields})


def microdit_stream(folder: Path):
    from microdit.data.stream.opening import open_mix

    source = [{"name": "benchmark", "folder": str(folder)}]
    return open_mix(source, resolution_px=256, seed=0, autoencoder="any", text_encoder="any")


def microdit_batches(folder: Path, workers: int) -> Iterator[int]:
    from microdit.data.stream.batches import GlobalBatches, LatentLoader

    for batch in LatentLoader(microdit_stream(folder), GlobalBatches(BATCH), workers):
        yield len(batch["latents"])


def microdit_process_batches(folder: Path, workers: int) -> Iterator[int]:
    from torch.utils.data import DataLoader

    from microdit.data.stream.batches import GlobalBatches

    positions = GlobalBatches(BATCH)
    for batch in DataLoader(microdit_stream(folder), batch_sampler=positions, collate_fn=as_it_is, num_workers=workers):
        yield len(batch["latents"])


def as_it_is(batch):
    return batch


def streaming_batches(folder: Path, workers: int) -> Iterator[int]:
    import torch
    from streaming import StreamingDataset
    from torch.utils.data import DataLoader

    class Latents(StreamingDataset):
        def __getitem__(self, number: int):
            sample = super().__getitem__(number)
            caption = np.frombuffer(sample["caption"], np.float16).reshape(CAPTION).copy()
            latents = np.frombuffer(sample["latents_256"], np.float16).reshape(SMALL).copy()
            return {"captions": torch.from_numpy(caption), "latents": torch.from_numpy(latents)}

    dataset = Latents(local=str(folder), shuffle=True, batch_size=BATCH)
    while True:
        for batch in DataLoader(dataset, batch_size=BATCH, num_workers=workers, drop_last=True):
            yield len(batch["latents"])


def webdataset_batches(folder: Path, workers: int) -> Iterator[int]:
    import torch
    import webdataset
    from torch.utils.data import DataLoader

    tars = sorted(str(path) for path in folder.glob("*.tar"))
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False).shuffle(1000).decode()
    dataset = dataset.to_tuple("latents_256.npy", "caption.npy").map_tuple(torch.from_numpy, torch.from_numpy)
    while True:
        for latents, _ in DataLoader(dataset.batched(BATCH), batch_size=None, num_workers=workers):
            yield len(latents)


BATCHES = {
    "microdit": microdit_batches,
    "microdit, DataLoader": microdit_process_batches,
    "streaming": streaming_batches,
    "webdataset": webdataset_batches,
}


def measure(reader: str, folder: Path, workers: int, seconds: float) -> float:
    """Samples a second, after one pass over the data."""
    import torch

    torch.set_num_threads(1)
    batches = BATCHES[reader](folder, workers)
    read = 0
    while read < SAMPLES // 2:  # start-up, worker start and first touches are not what is measured
        read += next(batches)
    read, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        read += next(batches)
    return read / (time.perf_counter() - started)


def call(python: str, *arguments: str) -> str:
    """Run a part of this file in a process of its own."""
    command = [python, str(Path(__file__).resolve()), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--streaming-python", help="interpreter of an environment with mosaicml-streaming; else left out"
    )
    parser.add_argument("--folder", type=Path, help="where the shards are made and kept; by default a temporary folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="measured in each round")
    parser.add_argument("--measure", nargs=3, metavar=("READER", "FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, metavar=("READER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        reader, folder, workers = options.measure
        print(json.dumps(measure(reader, Path(folder), int(workers), options.seconds)), flush=True)
        os._exit(0)  # endless iterators: their workers need not be waited for
    if options.write:
        (write_streaming_shards if options.write[0] == "streaming" else write_latent_shards)(Path(options.write[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        compare(options, options.folder or Path(temporary))


def compare(options: argparse.Namespace, root: Path) -> None:
    """Write the shards, let the readers take turns, print the table."""
    pythons = dict.fromkeys(("microdit", "microdit, DataLoader", "webdataset"), sys.executable)
    if options.streaming_python:
        pythons["streaming"] = options.streaming_python
    folders = dict.fromkeys(pythons, root / "latents") | {"streaming": root / "streaming"}
    for reader in pythons:
        if not folders[reader].exists():
            call(pythons[reader], "--write", reader, str(folders[reader]))
    print(f"{'reader':<22}{'workers':>8}{'samples/s':>12}{'microdit is':>14}   rounds")
    for workers in (0, 2):
        rounds: dict[str, list[float]] = {reader: [] for reader in pythons}
        for _ in range(options.rounds):
            for reader, python in pythons.items():
                arguments = ("--measure", reader, str(folders[reader]), str(workers), "--seconds", str(options.seconds))
                rounds[reader].append(json.loads(call(python, *arguments).splitlines()[-1]))
        medians = {reader: statistics.median(speeds) for reader, speeds in rounds.items()}
        for reader, speed in medians.items():
            times = f"{medians['microdit'] / speed:.1f}x" if reader != "microdit" else ""
            listed = ", ".join(f"{speed:,.0f}" for speed in rounds[reader])
            print(f"{reader:<22}{workers:>8}{speed:>12,.0f}{times:>14}   {listed}")


if __name__ == "__main__":
    main()
