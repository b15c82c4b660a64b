"""Networks whose features are compared between two sets of pictures: Inception for FID, DINOv2 for FDD. CLIP's are in
`clip.py`.

Each takes bytes, as torchmetrics gives them, and has a `name`, which tells the results of different networks apart, and
`num_features`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate
from torchmetrics.image.fid import NoTrainInceptionV3

from microdit.build import SettingsError
from microdit.encoders.networks import read_network, reading
from microdit.evaluation.frechet import Features
from microdit.kinds import Read, Weights

Resize = Callable[[UInt8[Tensor, "n 3 h w"], int], Float[Tensor, "n 3 side side"]]


def clean(pictures: UInt8[Tensor, "n 3 h w"], side: int) -> Float[Tensor, "n 3 side side"]:
    """Square pictures by the bicubic filter of Pillow with antialiasing, a channel at a time and not rounded, as
    clean-fid has it (Parmar et al. 2022). Values may leave 0..255 a little."""
    # torch computes the filter's weights in the precision of the pictures: float32 is off by up to 0.01.
    resized = interpolate(pictures.double(), (side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.float()


def bilinear(pictures: UInt8[Tensor, "n 3 h w"], side: int) -> Float[Tensor, "n 3 side side"]:
    """Square pictures as torchmetrics' FID has them."""
    return interpolate(pictures.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)


def without_filter(pictures: UInt8[Tensor, "n 3 h w"], side: int) -> Float[Tensor, "n 3 side side"]:
    """Square pictures as torch-fidelity has them, and the first code of FID (Heusel et al. 2017): bilinear as in
    TensorFlow 1, where pixel i lies at i times the scale, and each is made of the four around it alone."""

    def between(size: int) -> tuple[Tensor, Tensor, Tensor]:
        place = torch.arange(side, device=pictures.device, dtype=torch.float32) * (size / side)
        first = place.long()
        return first, (first + 1).clamp_max(size - 1), place - first

    top, bottom, down = between(pictures.shape[2])
    left, right, across = between(pictures.shape[3])
    x = pictures.float()
    upper, lower = (torch.lerp(rows[..., left], rows[..., right], across) for rows in (x[:, :, top], x[:, :, bottom]))
    return torch.lerp(upper, lower, down[:, None])


RESIZES: dict[str, Resize] = {"clean": clean, "torchmetrics": bilinear, "torch_fidelity": without_filter}


class InceptionFeatures(Features):
    """The last layer but one of FID's Inception, at 299 px. `resize`: as clean-fid, torchmetrics or torch-fidelity has
    it, which give different distances. `weights`: a local copy of torch-fidelity's file; None: it downloads it on first
    use.

    Raises SettingsError where torch-fidelity is missing, or the file holds something else.
    """

    SIDE_PX = 299
    LAYERS = (
        *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3"),
        *("MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
        *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
    )

    def __init__(self, resize: Literal["clean", "torchmetrics", "torch_fidelity"], weights: Read | None) -> None:
        super().__init__()
        if find_spec("torch_fidelity") is None:
            raise SettingsError(
                "FID by Inception needs torch-fidelity: pip install 'microdit[fid]'. Its weights are downloaded on "
                "first use, or read from the file metrics.fid.features.weights"
            )
        told = reading(weights, "features.weights", "the Inception of torch-fidelity") if weights else nullcontext()
        with told:
            if weights is not None:
                torch.load(weights, weights_only=True)  # torch-fidelity would run what is pickled in it
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"], weights)
        self.resize, self.name, self.num_features = RESIZES[resize], resize, 2048

    @torch.no_grad()
    def forward(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        x = (self.resize(pictures, self.SIDE_PX) - 128) / 128
        for layer in self.LAYERS:  # its own `forward` takes whole numbers alone
            x = getattr(self.network, layer)(x)
        return x.flatten(1)


class DinoFeatures(Features):
    """The class token of a DINOv2 of transformers, at 224 px, as dgm-eval takes it (Stein et al. 2023); read when it is
    made. `weights`: a folder or "owner/name" on the hub. Raises as `read_network`."""

    SIDE_PX = 224
    MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of values in 0..255

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.network: Any = read_network("Dinov2Model", "dinov2", weights, "features.weights")
        self.name, self.num_features = name, int(self.network.config.hidden_size)

    @torch.no_grad()
    def forward(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        pixels = clean(pictures, self.SIDE_PX).clamp(0, 255).round()  # as Pillow gives bytes
        mean, deviation = (
            torch.tensor(each, device=pixels.device).view(3, 1, 1) for each in (self.MEAN, self.DEVIATION)
        )
        return self.network(pixel_values=(pixels - mean) / deviation).last_hidden_state[:, 0]
