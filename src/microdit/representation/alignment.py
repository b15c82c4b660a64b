"""What a network learns beside denoising: that its tokens tell what a frozen network's features of the picture do.

A method says how tokens are projected and what they are compared with. Which tokens these are is found where they are:
a block's output has all patches, or those that a token path has kept. A new method is a subclass in a file of its own,
named by one file in `conf/representation/`. Its layers are trained with the network's, and are no part of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from microdit.build import build
from microdit.cost.flops import FlopCounter, on_meta
from microdit.cost.memory import FLOAT32, DeviceMemory, part_size, saved_bytes, without_storage
from microdit.kinds import Limits, SettingsError
from microdit.masking.patches import KeptPatches
from microdit.masking.ratio import MaskRatio
from microdit.model.dit import DiT
from microdit.model.operations import FORMULAS, use_operations
from microdit.representation.features import PatchFeatures

PartOfRun = Annotated[float, Limits(0, 1)]
PartOfBlocks = Annotated[float, Limits(1e-6, 1)]


class Seen:
    """The network, called as the objective calls it, and what is to be aligned of the last call: the `tokens` that
    block number `block` gave (from 1), and which patches were `kept`, None for all.

    The block is watched during a call only: copies of the network have nothing of it.
    """

    def __init__(self, network: DiT, block: int):
        self.network, self.block = network, block
        self.tokens: Tensor | None = None
        self.kept: KeptPatches | None = None
        self.grid = network.trained_grid

    def __call__(self, *arguments: Any, **named: Any) -> Float[Tensor, "n c h w"]:
        self.grid, self.kept = self.network.grid(arguments[0]), arguments[3] if len(arguments) > 3 else None

        def remember(block: nn.Module, given: Any, tokens: Tensor) -> None:
            self.tokens = tokens

        watching = self.network.blocks[self.block - 1].register_forward_hook(remember)
        try:
            return self.network(*arguments, **named)
        finally:
            watching.remove()


class Alignment(nn.Module, ABC):
    """`weight` times minus the mean cosine between what is made of tokens and what is made of features.

    `features` made what the data has; tokens are those behind the first `block_share` of the backbone's blocks, at
    least one; the loss ends after the first `until` of the steps.
    """

    def __init__(self, features: PatchFeatures, weight: float, block_share: PartOfBlocks, until: PartOfRun) -> None:
        super().__init__()
        if not 0 <= weight <= 1e6:
            raise SettingsError(f"representation.weight is the factor of the loss, 0 or above; got {weight}")
        self.weight, self.block_share, self.until, self.channels = weight, block_share, until, features.channels

    @abstractmethod
    def make_layers(self, dim: int) -> None:
        """Makes the layers that turn tokens of width `dim` into `channels` numbers."""

    @abstractmethod
    def project(
        self, tokens: Float[Tensor, "n k d"], kept: KeptPatches | None, grid: tuple[int, int]
    ) -> Float[Tensor, "n k c"]:
        """What is compared of tokens, of all patches of `grid` or of those `kept`."""

    def target(self, features: Float[Tensor, "n c rows columns"]) -> Float[Tensor, "n c rows columns"]:
        """What is compared of features: they themselves."""
        return features

    def block(self, depth: int) -> int:
        """The number of the block behind which tokens are taken, from 1, of so many."""
        return max(1, round(self.block_share * depth))

    def is_on(self, progress: float) -> bool:
        """Whether there is a loss when `progress` (0 to 1) of the steps are done."""
        return progress < self.until

    def forward(
        self, seen: Seen | None = None, features: Float[Tensor, "n c rows columns"] | None = None
    ) -> Float[Tensor, " n"]:
        """Each sample's loss, as it is added. Of nothing: zero, with a gradient of zero for each of the weights, which
        DDP wants in every step."""
        if seen is None or features is None:
            return torch.stack([0 * parameter.sum() for parameter in self.parameters()]).sum()[None]
        assert seen.tokens is not None
        kept = None if seen.tokens.shape[1] == math.prod(seen.grid) else seen.kept
        wanted = F.interpolate(self.target(features.float()), seen.grid, mode="bilinear").flatten(2).transpose(1, 2)
        if kept is not None:
            wanted = kept.select(wanted)
        found = self.project(seen.tokens, kept, seen.grid)
        return -self.weight * F.cosine_similarity(found.float(), wanted, dim=-1).mean(dim=1)


def features_of(settings: Mapping[str, Any]) -> PatchFeatures | None:
    """The network whose features the data needs for these settings of `representation`; None where nothing is aligned.

    Raises SettingsError where they name none.
    """
    if "_target_" not in settings or settings.get("weight") == 0:
        return None
    if "features" not in settings:
        raise SettingsError("representation needs features: the network to learn from, as in conf/features")
    return build(settings["features"], PatchFeatures, "representation.features")


def make_alignment(settings: Mapping[str, Any], network: DiT | None) -> Alignment | None:
    """The alignment of these settings with layers for a network's tokens; without a network it has none, which checks
    the settings. None where nothing is aligned, by its absence or by a weight of 0. Raises SettingsError."""
    features = features_of(settings)
    if features is None:
        return None
    own = {name: value for name, value in settings.items() if name != "features"}
    alignment = build(own, Alignment, "representation", features=features)
    if network is not None:
        alignment.make_layers(network.pos_embed.shape[-1])
    return alignment


def alignment_costs(
    alignment: Alignment | None, network: DiT, mask_ratio: MaskRatio, caption_length: int
) -> Callable[[float], int]:
    """What an alignment adds to an image's FLOPs of training when `progress` (0 to 1) of the steps are done."""

    @cache
    def counted(ratio: float) -> int:
        assert alignment is not None
        return alignment_flops_per_image(alignment, network, ratio, caption_length)

    def costs(progress: float) -> int:
        return counted(mask_ratio.ratio(progress)) if alignment is not None and alignment.is_on(progress) else 0

    return costs


def alignment_flops_per_image(alignment: Alignment, network: DiT, mask_ratio: float, caption_length: int) -> int:
    """Forward and backward FLOPs of an alignment's layers for one image of the training size, by torch's own count."""
    meta, layers = on_meta(network).train(), on_meta(alignment)
    with torch.device("meta"):
        seen = Seen(meta, alignment.block(len(network.blocks)))
        kept = meta.token_path.keep(torch.empty(1, math.prod(meta.trained_grid)), mask_ratio, meta.trained_grid)
        latents = torch.empty(1, meta.in_channels, meta.input_size, meta.input_size)
        with torch.no_grad():
            seen(latents, torch.empty(1), torch.empty(1, caption_length, meta.caption_channels), kept)
        assert seen.tokens is not None
        seen.tokens.requires_grad_()
        with FlopCounter() as counter:
            layers(seen, torch.empty(1, alignment.channels, *meta.trained_grid)).sum().backward()
    return counter.flops


def with_alignment(
    memory: DeviceMemory,
    alignment: Alignment | None,
    network: DiT,
    *,
    parts: int,
    images: int,
    mask_ratio: float,
    caption_length: int,
) -> DeviceMemory:
    """The memory of training with what an alignment takes beside the network: its layers' weights, which have no moving
    average, their gradients and moments, and what their backward pass needs, in float32."""
    if alignment is None:
        return memory
    kept = FLOAT32 * sum(part_size(parameter, parts) for parameter in alignment.parameters())
    activations = alignment_activation_bytes(alignment, network, images, mask_ratio, caption_length)
    return replace(
        memory,
        parameters=memory.parameters + kept,
        gradients=memory.gradients + kept,
        optimizer=memory.optimizer + 2 * kept,
        activations=memory.activations + activations,
    )


def alignment_activation_bytes(
    alignment: Alignment, network: DiT, images: int, mask_ratio: float, caption_length: int
) -> int:
    """What the loss of an alignment keeps for its backward pass, as autograd does on its real layers."""
    with FakeTensorMode(), torch.device("cpu"):
        fake, layers = without_storage(network, torch.float32).train(), without_storage(alignment, torch.float32)
        use_operations(fake, FORMULAS)
        seen = Seen(fake, alignment.block(len(network.blocks)))
        kept = fake.token_path.keep(torch.empty(images, math.prod(fake.trained_grid)), mask_ratio, fake.trained_grid)
        latents = torch.empty(images, fake.in_channels, fake.input_size, fake.input_size)
        with torch.no_grad():
            seen(latents, torch.ones(images), torch.empty(images, caption_length, fake.caption_channels), kept)
        assert seen.tokens is not None
        seen.tokens.requires_grad_()
        features = torch.empty(images, alignment.channels, *fake.trained_grid)
        given = [seen.tokens, features, *layers.parameters(), *layers.buffers()]
        return saved_bytes(lambda: layers(seen, features), given)
