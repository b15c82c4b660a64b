"""Made the committed weights of `microdit.evaluation.shapes.features`: `python train_features.py OUTPUT`.

The network is taught to name what is in scenes of both domains, each drawn once; what it thereby measures of a picture
are the features. The scenes have changed since (SCENES_VERSION): it would make other weights now. See
README.md for the accuracies reached.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from microdit.data.shapes import COLOURS, DOMAINS, SHAPES, Scene, render, sample
from microdit.evaluation.shapes.features import GROUNDS, SIDE_PX, VERSION, Attributes, ShapesFeatures
from microdit.progress import progress_bar

COLOUR_NAMES = tuple(COLOURS)


def scenes(split: str, indices: Sequence[int]) -> list[Scene]:
    """Scenes of a split by number, the domains in turn."""
    return [sample(split, DOMAINS[i % len(DOMAINS)], i).scene for i in indices]


def pictures(drawn: Sequence[Scene]) -> UInt8[Tensor, "n 3 32 32"]:
    """The scenes' pictures."""
    return torch.from_numpy(np.stack([render(scene, SIDE_PX) for scene in drawn])).permute(0, 3, 1, 2)


def truth(drawn: Sequence[Scene]) -> Attributes:
    """What is in the scenes: class numbers for domain, ground and count, 0 or 1 for shapes, colours and pairs, and the
    mean centre of each shape (0 where there is none)."""
    shapes, colours = np.zeros((len(drawn), len(SHAPES))), np.zeros((len(drawn), len(COLOURS)))
    pairs = np.zeros((len(drawn), len(SHAPES), len(COLOURS)))
    positions, numbers = np.zeros((len(drawn), len(SHAPES), 2)), np.zeros((len(drawn), len(SHAPES), 1))
    for row, scene in enumerate(drawn):
        for thing in scene.objects:
            shape, colour = SHAPES.index(thing.shape), COLOUR_NAMES.index(thing.colour)
            shapes[row, shape] = colours[row, colour] = pairs[row, shape, colour] = 1
            positions[row, shape] += (thing.x, thing.y)
            numbers[row, shape] += 1
    classes = [
        [DOMAINS.index(scene.domain) for scene in drawn],
        [GROUNDS.index(scene.background.name) for scene in drawn],
        [len(scene.objects) - 1 for scene in drawn],
    ]
    floats = (shapes, colours, pairs.reshape(len(drawn), -1), positions / np.maximum(numbers, 1))
    return Attributes(*(torch.tensor(each) for each in classes), *(torch.from_numpy(each).float() for each in floats))


def attribute_loss(said: Attributes, true: Attributes) -> Tensor:
    """The sum of all tasks' losses: cross-entropies, and the squared error of where the shapes are that are there."""
    classes = sum(F.cross_entropy(getattr(said, name), getattr(true, name)) for name in ("domain", "ground", "count"))
    # Summed over the attributes of a scene, so that rare pairs weigh as much as each class does.
    presences = sum(
        F.binary_cross_entropy_with_logits(getattr(said, name), getattr(true, name), reduction="sum") / len(said.count)
        for name in ("shapes", "colours", "pairs")
    )
    there = true.shapes[..., None]
    error = ((said.positions - true.positions) ** 2 * there).sum() / there.sum()
    return classes + presences + 20 * error


def train(steps: int, batch_size: int, seed: int) -> ShapesFeatures:
    """A network trained on `steps` batches of scenes of the training split, none of them seen twice."""
    torch.manual_seed(seed)
    network = ShapesFeatures()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    with progress_bar("shapes features") as report:
        for step in range(steps):
            drawn = scenes("train", range(step * batch_size, (step + 1) * batch_size))
            loss = attribute_loss(network.attributes(network(pictures(drawn))), truth(drawn))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            report(step + 1, steps, f"loss {loss.item():.3f}")
    return network.eval().requires_grad_(False)


@torch.no_grad()
def attribute_accuracy(network: ShapesFeatures, count: int = 2000) -> dict[str, float]:
    """Shares in 0..1 of `count` held-out scenes (half of each domain) for which an attribute is named right.

    `shapes`, `colours` and `pairs` must be right altogether: all that are there and none that is not. `position_error`:
    mean distance between said and true centre of a shape that is there, as a fraction of the side.
    """
    drawn = scenes("evaluation", range(count))
    parts = [network.attributes(network(part)) for part in pictures(drawn).split(250)]
    said = Attributes(*(torch.cat(each) for each in zip(*parts, strict=True)))
    true = truth(drawn)
    accuracy = {
        name: float((getattr(said, name).argmax(1) == getattr(true, name)).float().mean())
        for name in ("domain", "ground", "count")
    }
    accuracy |= {
        name: float(((getattr(said, name) > 0) == (getattr(true, name) > 0.5)).all(1).float().mean())
        for name in ("shapes", "colours", "pairs")
    }
    distance = (said.positions - true.positions).norm(dim=-1)
    return accuracy | {"position_error": float(distance[true.shapes > 0.5].mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="the .safetensors file to write")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    network = train(arguments.steps, arguments.batch_size, arguments.seed)
    accuracy = attribute_accuracy(network)
    for name, value in accuracy.items():
        print(f"{name}: {value:.4f}")
    metadata = {"version": VERSION, **{name: f"{value:.4f}" for name, value in accuracy.items()}}
    save_file(network.state_dict(), arguments.output, metadata)


if __name__ == "__main__":
    main()
