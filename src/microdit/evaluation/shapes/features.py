"""The feature network of the Frechet distance for shapes: a small CNN that was taught what is in a scene.

Inception's features were learnt on photographs and are tens of megabytes; these know shapes, colours and places, and
are committed beside this file; experiments/shapes_features made them. A change of the weights is a new version, with
a new name in every result, so that distances by different features are never compared.
"""

from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn

from microdit.data.shapes import COLOURS, SHAPES
from microdit.data.shapes.scenes import BACKDROPS, SURFACES

VERSION = "v1"
WEIGHTS = Path(__file__).with_name(f"features_{VERSION}.safetensors")
SIDE_PX = 32
GROUNDS = (*SURFACES, *BACKDROPS)
MOST_OBJECTS = 4


class Attributes(NamedTuple):
    """What the network says about a scene: logits, but `positions`, which are fractions of the side."""

    domain: Float[Tensor, "n 2"]
    ground: Float[Tensor, "n grounds"]
    count: Float[Tensor, "n 4"]
    shapes: Float[Tensor, "n shapes"]
    colours: Float[Tensor, "n colours"]
    pairs: Float[Tensor, "n shapes*colours"]
    positions: Float[Tensor, "n shapes 2"]


class ShapesFeatures(nn.Module):
    """Pictures to 64 features, each of about mean 0 and variance 1 over the training scenes."""

    num_features = 64  # the name torchmetrics looks for

    def __init__(self) -> None:
        super().__init__()

        def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()
            )

        self.convolutions = nn.Sequential(
            convolution(3, 24, 1),
            convolution(24, 32, 2),
            convolution(32, 32, 1),
            convolution(32, 48, 2),
            convolution(48, 48, 1),
            convolution(48, 32, 2),
        )
        # Flattened, not averaged: where an object lies is part of what a scene is.
        self.to_features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(32 * (SIDE_PX // 8) ** 2, self.num_features),
            nn.BatchNorm1d(self.num_features, affine=False),
        )
        shapes, colours = len(SHAPES), len(COLOURS)
        self.sizes = (2, len(GROUNDS), MOST_OBJECTS, shapes, colours, shapes * colours, 2 * shapes)
        # One hidden layer: that the red one is the ring is no sum of features.
        self.to_attributes = nn.Sequential(
            nn.GELU(), nn.Linear(self.num_features, 128), nn.GELU(), nn.Linear(128, sum(self.sizes))
        )

    def forward(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 64"]:
        """Features of square pictures (0..255, as torchmetrics hands them on)."""
        return self.to_features(self.convolutions(self.normalised(pictures)))

    def normalised(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 32 32"]:
        """Square pictures (0..255) as the convolutions take them, resized to 32 px with antialiasing."""
        images = pictures.float() / 255
        if images.shape[-2:] != (SIDE_PX, SIDE_PX):
            images = nn.functional.interpolate(
                images, size=(SIDE_PX, SIDE_PX), mode="bilinear", align_corners=False, antialias=True
            )
        return (images - 0.5) / 0.25

    def attributes(self, features: Float[Tensor, "n 64"]) -> Attributes:
        """What the features say: the tasks they were learnt by."""
        said = Attributes(*self.to_attributes(features).split(self.sizes, dim=1))
        return said._replace(positions=said.positions.unflatten(1, (len(SHAPES), 2)))


def shapes_features() -> ShapesFeatures:
    """The committed network, frozen, in evaluation mode, on the CPU."""
    network = ShapesFeatures()
    network.load_state_dict(load_file(WEIGHTS))
    return network.eval().requires_grad_(False)
