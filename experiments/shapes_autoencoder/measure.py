"""What an autoencoder keeps of the embedded shapes: pictures in, pictures out, and what the detector makes of both.

    python experiments/shapes_autoencoder/measure.py src/microdit/pretrained/shapes_kl

Scenes are of the evaluation split, which training never saw. Writes measured.json and pictures.png beside this file.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from microdit.data import shapes
from microdit.encoders import KLAutoencoder
from microdit.evaluation.shapes.compositional import fulfils
from microdit.evaluation.shapes.detector import detect

SHOWN = 8


def opened(folder: Path) -> KLAutoencoder:
    """The autoencoder in a folder, its declarations read from its own config.json."""
    config = json.loads((folder / "config.json").read_text())
    scale, shift = config["scaling_factor"], config["shift_factor"]
    return KLAutoencoder(str(folder), config["latent_channels"], scale, shift, sigma_data=1.0)


def drawn(domain: str, count: int, side_px: int) -> tuple[list[shapes.Sample], Tensor]:
    """Samples of the evaluation split and their pictures, [count, 3, side_px, side_px] in 0..1."""
    samples = [shapes.sample("evaluation", domain, number) for number in range(count)]
    pictures = np.stack([shapes.render(sample.scene, side_px) for sample in samples])
    return samples, torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255


def measure(autoencoder: KLAutoencoder, domain: str, count: int, side_px: int) -> dict[str, float]:
    """Errors of pixels in 0..1; shares of scenes that fulfil their own prompts, as drawn and after the autoencoder."""
    samples, pictures = drawn(domain, count, side_px)
    made = torch.cat([autoencoder.decode(autoencoder.encode(batch)) for batch in pictures.split(64)])
    verdicts = {
        name: np.mean([fulfils(detect(each), sample.prompt) for each, sample in zip(images, samples, strict=True)])
        for name, images in (("true", pictures), ("decoded", made))
    }
    return {
        "mean_absolute_error": (made - pictures).abs().mean().item(),
        "psnr_db": -10 * (made - pictures).square().mean((1, 2, 3)).log10().mean().item(),
        "true_scenes_judged_right": float(verdicts["true"]),
        "decoded_scenes_judged_right": float(verdicts["decoded"]),
    }


def sheet(autoencoder: KLAutoencoder, side_px: int) -> Image.Image:
    """Scenes of both domains above what the autoencoder makes of them."""
    rows = []
    for domain in shapes.DOMAINS:
        pictures = drawn(domain, SHOWN, side_px)[1]
        rows += [pictures, autoencoder.decode(autoencoder.encode(pictures))]
    lines = [torch.cat(list(row), dim=2) for row in rows]
    pixels = (torch.cat(lines, dim=1).permute(1, 2, 0) * 255).round().byte().numpy()
    return Image.fromarray(pixels)


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with config.json and diffusion_pytorch_model.safetensors")
    parser.add_argument("--count", type=int, default=2000, help="scenes of each domain")
    parser.add_argument("--out", type=Path, default=here)
    given = parser.parse_args()
    autoencoder = opened(given.folder)
    found = {
        f"{domain} {side_px} px": measure(autoencoder, domain, given.count, side_px)
        for domain in shapes.DOMAINS
        for side_px in (64, 128)
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "measured.json").write_text(json.dumps({"scenes": given.count, **found}, indent=2) + "\n")
    sheet(autoencoder, 64).save(given.out / "pictures.png")
    for name, values in found.items():
        print(name, "  ".join(f"{key} {value:.4f}" for key, value in values.items()))


if __name__ == "__main__":
    main()
