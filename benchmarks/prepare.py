"""Pictures a second from tars of JPEG to latent shards, against a plain loop: `python benchmarks/prepare.py`.

Both read the same tars of drawn photographs, make centre squares of 256 px, encode them with the same small autoencoder
of random weights and the same text encoder, and write half precision to the disk. The plain loop is what one writes
first: PIL decodes the whole picture, 64 of them make a batch, the batch is encoded, the numbers are saved. With
`--encoder none` the pixels are the latents, which shows reading, decoding and writing alone. What a picture takes of a
core says more than its time where something else runs beside it.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import Spread
from PIL import Image

from microdit.data.prepare.convert import prepare
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import Recipe
from microdit.data.sources.captioned import CaptionedImage
from microdit.data.sources.tars import TarSource, write_pictures
from microdit.encoders import KLAutoencoder, PixelAutoencoder, WordsTextEncoder

SIDE, BATCH, QUALITY = 256, 64, 90


def photographs(count: int, width: int, height: int) -> Iterator[CaptionedImage]:
    """JPEG pictures with structure of every size, as photographs have, and a caption each."""
    chance = np.random.default_rng(0)
    for number in range(count):
        pixels = np.zeros((height, width, 3), np.float32)
        for octave in range(3, 9):
            coarse = chance.normal(size=(2**octave * height // width, 2**octave, 3)).astype(np.float32)
            channels = [np.asarray(Image.fromarray(coarse[..., c]).resize((width, height))) for c in range(3)]
            pixels += np.stack(channels, axis=-1) * 2 ** (6 - octave * 0.7)
        file = io.BytesIO()
        Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=QUALITY)
        yield CaptionedImage(f"{number:06d}", file.getvalue(), [f"a photograph called {number}"])


def write_tars(folder: Path, count: int, width: int, height: int, shard: int = 256) -> float:
    """Writes them as tars; returns the mean bytes of a picture."""
    items, written = photographs(count, width, height), 0
    for first in range(0, count, shard):
        with (folder / f"{first:06d}.tar").open("wb") as file:
            write_pictures(file, (next(items) for _ in range(min(shard, count - first))))
        written += (folder / f"{first:06d}.tar").stat().st_size
    return written / count


def encoders_of(kind: str, folder: Path, device: str) -> Encoders:
    """The encoders of both sides. `kind`: "small", an AutoencoderKL of random weights, or "none"."""
    text = WordsTextEncoder()
    if kind == "none":
        return Encoders(PixelAutoencoder(), text, "pixel", "words", device)
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(4, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.5,
        mid_block_add_attention=False,
    ).save_pretrained(folder)
    autoencoder = KLAutoencoder(str(folder), channels=4, scale=0.5).eval().to(device)
    autoencoder.load()
    return Encoders(autoencoder, text.to(device), "small", "words", device)


def plain_loop(tars: Path, target: Path, encoders: Encoders) -> int:
    """What one writes first; returns how many pictures it wrote."""
    target.mkdir()
    source, batch, written = TarSource(str(tars)), [], 0

    def flush() -> None:
        nonlocal written
        squares = []
        for item in batch:
            picture = Image.open(io.BytesIO(item.image)).convert("RGB")
            side = min(picture.size)
            left, top = (picture.width - side) // 2, (picture.height - side) // 2
            square = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            squares.append(np.asarray(square))
        pixels = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float().div(255).to(encoders.device)
        with torch.no_grad():
            latents = encoders.autoencoder.encode(pixels).half().cpu().numpy()
            tokens = encoders.text_encoder.tokenize([item.captions[0] for item in batch])
            captions = encoders.text_encoder.encode_tokens(tokens.to(encoders.device)).half().cpu().numpy()
        for item, latent, caption in zip(batch, latents, captions, strict=True):
            np.savez(target / f"{item.key}.npz", latents=latent, caption=caption)
            written += 1
        batch.clear()

    for shard in range(len(source.shards())):
        for item in source.read(shard):
            assert isinstance(item, CaptionedImage)
            batch.append(item)
            if len(batch) == BATCH:
                flush()
    if batch:
        flush()
    return written


def ours(tars: Path, target: Path, encoders: Encoders, threads: int) -> int:
    recipe = Recipe([SIDE], batch_size=BATCH, decode_threads=threads)
    return prepare(TarSource(str(tars)), target / "set/train", encoders, recipe).written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--size", type=int, nargs=2, default=[1600, 1200], metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--encoder", choices=["small", "none"], default="small")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="that decode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "tars").mkdir()
        size = write_tars(root / "tars", chosen.count, *chosen.size)
        encoders = encoders_of(chosen.encoder, root / "encoder", chosen.device)
        speeds: dict[str, list[float]] = {"plain loop": [], "microdit": []}
        work: dict[str, list[float]] = {name: [] for name in speeds}
        for number in range(chosen.rounds):
            for name in speeds:
                started, busy = time.perf_counter(), time.process_time()
                if name == "plain loop":
                    written = plain_loop(root / "tars", root / f"plain{number}", encoders)
                else:
                    written = ours(root / "tars", root / f"ours{number}", encoders, chosen.threads)
                assert written == chosen.count
                speeds[name].append(written / (time.perf_counter() - started))
                work[name].append(1000 * (time.process_time() - busy) / written)
        what = f"{chosen.count} JPEG of {chosen.size[0]} x {chosen.size[1]} px, {size:,.0f} bytes each"
        print(f"{what}; encoder: {chosen.encoder}")
        for name, values in speeds.items():
            print(f"  {name}: {Spread.of(values).show()} pictures/s, {Spread.of(work[name]).show()} ms of a core each")
        ratios = [mine / plain for mine, plain in zip(speeds["microdit"], speeds["plain loop"], strict=True)]
        print(f"  microdit is {Spread.of(ratios).show()} times the plain loop")


if __name__ == "__main__":
    main()
