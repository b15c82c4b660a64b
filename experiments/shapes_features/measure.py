"""Accuracies of the committed feature network, and distances of spoilt scenes.

Run as `python experiments/shapes_features/measure.py`; writes accuracy.csv and distances.csv beside itself.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.transforms.functional import gaussian_blur
from train_features import attribute_accuracy

from microdit.evaluation.frechet import frechet_distances
from microdit.evaluation.shapes.features import SIDE_PX, shapes_features
from microdit.evaluation.shapes.scenes import held_out_scenes, rendered

HERE = Path(__file__).parent
COUNT, REFERENCES = 512, 4096


def true_pictures(domain: str, first: int, count: int) -> torch.Tensor:
    return torch.cat(list(rendered(held_out_scenes([domain], range(first, first + count)), SIDE_PX)))


def spoilt() -> Iterator[tuple[str, torch.Tensor]]:
    """What a model may do wrong, by name: COUNT pictures each."""
    scenes, real = true_pictures("synthetic", 0, COUNT), true_pictures("real", 0, COUNT)
    generator = torch.Generator().manual_seed(0)
    yield "true scenes", scenes
    for strength in (0.02, 0.05, 0.1, 0.2):
        noise = torch.randn(scenes.shape, generator=generator)
        yield f"noise of {strength}", (scenes + strength * noise).clamp(0, 1)
    for pixels in (0.5, 1.0, 2.0):
        yield f"blur of {pixels} px", gaussian_blur(scenes, [7, 7], [pixels, pixels])
    for share in (16, 4, 2, 1):
        replaced = COUNT // share
        yield f"1/{share} real scenes", torch.cat([scenes[replaced:], real[:replaced]])
    yield "colours exchanged", scenes[:, [1, 2, 0]]
    yield "upside down", scenes.flip(2)
    yield "16 scenes, 32 times", scenes[:16].repeat(COUNT // 16, 1, 1, 1)
    yield "uniform noise", torch.rand(scenes.shape, generator=generator)


def write(path: Path, header: list[str], rows: list[tuple[str, float]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([name, f"{value:.4f}"] for name, value in rows)
    print(path.read_text())


def main() -> None:
    write(HERE / "accuracy.csv", ["attribute", "accuracy"], list(attribute_accuracy(shapes_features()).items()))
    samples = {name: images.split(256) for name, images in spoilt()}
    references = true_pictures("synthetic", COUNT, REFERENCES).split(256)
    distances = frechet_distances(shapes_features(), samples, references)
    write(HERE / "distances.csv", ["512 pictures", "distance"], list(distances.items()))


if __name__ == "__main__":
    main()
