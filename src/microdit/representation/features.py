"""Frozen networks whose features of a picture's places are stored beside its latents, to be learnt from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Annotated, Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from microdit.encoders.networks import read_network
from microdit.evaluation.features import DinoFeatures, clean
from microdit.evaluation.shapes.features import VERSION, shapes_features
from microdit.kinds import Limits, SettingsError, Weights


class PatchFeatures(nn.Module, ABC):
    """`name` tells stored features of different networks apart, in names of folders; `channels`: of each place."""

    name: str
    channels: int

    def load(self) -> object:
        """Reads the weights now instead of on first use; raises what that would raise."""

    @abstractmethod
    def patch_features(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n c rows columns"]:
        """Features of the places of square pictures (0..255), as many whatever their size."""


class ShapesPatchFeatures(PatchFeatures):
    """The feature network of the embedded shapes, which comes along: its last two grids of features, of 8 x 8 and 4 x 4
    places, each normalised over its channels and both on the finer one."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.channels, self.network = f"shapes_{VERSION}", 80, shapes_features()

    @torch.no_grad()
    def patch_features(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 80 8 8"]:
        *earlier, last = cast(nn.Sequential, self.network.convolutions)
        fine = self.network.normalised(pictures)
        for convolution in earlier:
            fine = convolution(fine)
        grids = [F.layer_norm(grid.movedim(1, -1), grid.shape[1:2]).movedim(-1, 1) for grid in (fine, last(fine))]
        return torch.cat([grids[0], F.interpolate(grids[1], fine.shape[2:], mode="bilinear")], dim=1)


class DinoPatchFeatures(PatchFeatures):
    """The tokens of the patches of a DINOv2 of transformers, normalised as it gives them; `side_px` is the side that
    pictures are resized to, 14 times the places along it (16 in the REPA paper at 256 px). `weights`: a folder or
    "owner/name" on the hub, `channels`: their width, 768 for ViT-B. Raises as `read_network`, on first use."""

    PATCH_PX = 14

    def __init__(
        self,
        weights: Weights,
        name: Annotated[str, Limits(1, 40)],
        channels: Annotated[int, Limits(1, 8192)],
        side_px: Annotated[int, Limits(14, 2240)] = 224,
    ) -> None:
        super().__init__()
        if side_px % self.PATCH_PX:
            raise SettingsError(f"features.side_px is a multiple of {self.PATCH_PX}, got {side_px}")
        if not name.replace("_", "").isalnum():
            raise SettingsError(f"features.name is part of a folder's: letters, digits and underscores; got {name}")
        self.weights, self.name, self.channels, self.side_px = weights, name, channels, side_px
        self.network: Any = None

    def load(self) -> object:
        if self.network is None:
            read = read_network("Dinov2Model", "dinov2", self.weights, "features.weights")
            width, patch_px = int(read.config.hidden_size), int(read.config.patch_size)
            if (width, patch_px) != (self.channels, self.PATCH_PX):
                raise SettingsError(
                    f"features.weights={self.weights} has {width} channels and patches of {patch_px} px: set "
                    f"features.channels={width}, and take a network with patches of {self.PATCH_PX} px"
                )
            self.network = read
        return self.network

    @torch.no_grad()
    def patch_features(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n c rows columns"]:
        network: Any = self.load()
        network.to(pictures.device)
        pixels = clean(pictures, self.side_px).clamp(0, 255)
        mean, deviation = (
            torch.tensor(of_imagenet, device=pixels.device).view(3, 1, 1)
            for of_imagenet in (DinoFeatures.MEAN, DinoFeatures.DEVIATION)
        )
        tokens = network(pixel_values=(pixels - mean) / deviation).last_hidden_state[:, 1:]
        side = math.isqrt(tokens.shape[1])
        return tokens.transpose(1, 2).unflatten(2, (side, side))
