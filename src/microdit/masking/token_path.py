"""Token paths: the answers a masking method gives, as one function each.

Which patches are dropped (`keep`), how tokens travel through the network (`forward`: what runs on all patches first,
and what the dropped ones become after the backbone), where the loss is (`denoising_loss`) and what else is learned
(`extra_loss`). A new method is a subclass in a file of its own, with layers of its own if it needs any (`make_layers`),
named by one file in `conf/masking/`; docs/methods.md writes one. At mask ratio 0 and at inference `kept` is None and
every path runs on all patches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from microdit.kinds import SettingsError
from microdit.masking.patches import KeptPatches, keep_blocks

MOST_BLOCKS = 1000  # of one kind in a network


@runtime_checkable
class Conditioning(Protocol):
    """What every block sees beside the patches: `vector` shifts, scales and gates, `captions` are attended to, or those
    of their tokens that are `present` (None: all)."""

    @property
    def vector(self) -> Float[Tensor, "n d"]: ...

    @property
    def captions(self) -> Float[Tensor, "n l d"]: ...

    @property
    def present(self) -> Bool[Tensor, "n l"] | None: ...


@runtime_checkable
class Network(Protocol):
    """What a path may ask of the network that it leads through (`model/dit.py`)."""

    def mix_patches(self, tokens: Float[Tensor, "n t d"], conditioning: Conditioning) -> Float[Tensor, "n t dm"]:
        """The patch-mixer, at its own width, over all patches."""
        ...

    def leave_mixer(self, tokens: Float[Tensor, "n k dm"]) -> Float[Tensor, "n k d"]:
        """Back to the backbone's width."""
        ...

    def backbone(
        self, tokens: Float[Tensor, "n k d"], conditioning: Conditioning, first: int = 0, end: int | None = None
    ) -> Float[Tensor, "n k d"]:
        """The expensive part, over whatever tokens it is given: all its blocks, or those from `first` up to `end`."""
        ...

    def positions_of(self, grid: tuple[int, int], trained: Float[Tensor, "1 s d"]) -> Float[Tensor, "1 t d"]:
        """The positions of a grid of (rows, columns) patches: those of training if it is that grid, or made for it."""
        ...


class NetworkParts(NamedTuple):
    """What a path needs for layers of its own: sizes of the network, and how it makes its blocks.

    `grid` is (rows, columns) of patches at the size of training, `position_table(grid, width)` tells them apart.
    `make_block(width)` makes a dense block as the patch-mixer has them: called with (tokens, captions, conditioning
    vector, caption tokens present). `change_width(from_dim, to_dim)` makes what leads to and from one of another width.
    """

    dim: int
    depth: int
    head_dim: int
    grid: tuple[int, int]
    position_table: Callable[[tuple[int, int], int], Tensor]
    make_block: Callable[[int], nn.Module]
    change_width: Callable[[int, int], nn.Module]


class TokenPath(nn.Module, ABC):
    """How tokens travel through the network when patches are masked, and what is learned from them.

    `uses_patch_mixer` says whether the network must have (True) or must not have (False) a patch-mixer; `drops_patches`
    whether the path can be used at mask ratios above 0. `block_size`: squares of block_size x block_size patches are
    kept or dropped together.
    """

    uses_patch_mixer: bool
    drops_patches = True

    def __init__(self, block_size: int = 1) -> None:
        super().__init__()
        if block_size < 1:
            raise ValueError(f"masking.block_size is the side of a block in patches, at least 1; got {block_size}")
        self.block_size = block_size

    def make_layers(self, network: NetworkParts) -> None:
        """Makes the path's own layers as its submodules, if it has any; the network calls this once.

        They are in the network's state dict below `token_path.`, initialised and trained with the rest.
        """

    def keep(self, uniform: Float[Tensor, "n t"], mask_ratio: float, grid: tuple[int, int]) -> KeptPatches | None:
        """The patches that the backbone sees, from one draw of U[0, 1) a patch; None where none is dropped.

        All chance comes from `uniform`, or a resumed run would not repeat it. `grid` is (rows, columns) of patches.
        """
        return keep_blocks(uniform, mask_ratio, grid, self.block_size)

    def weak_pass(self, samples: int, grid: tuple[int, int], device: torch.device) -> KeptPatches:
        """What `forward` takes for a cheap pass to guide away from (`sampling.guidance=path_drop`). A path that was
        not trained for one raises SettingsError, as here."""
        raise SettingsError(
            f"{type(self).__name__} has no cheap pass to guide away from: guidance by path drop is for networks that "
            "were trained with masking=sprint; choose sampling.guidance=captions"
        )

    @abstractmethod
    def forward(
        self,
        network: Network,
        tokens: Float[Tensor, "n t d"],
        conditioning: Conditioning,
        kept: KeptPatches | None,
        grid: tuple[int, int],
    ) -> tuple[Float[Tensor, "n k d"], KeptPatches | None]:
        """Tokens of the patches that are predicted, and which patches those are (None: all of them).

        `grid` is (rows, columns) of patches, for paths that have to give positions anew.
        """

    def denoising_loss(self, errors: Float[Tensor, "n t"], kept: KeptPatches | None) -> Float[Tensor, " n"]:
        """Where the loss is: each sample's mean of its patches' denoising errors, over the kept patches here."""
        if kept is None:
            return errors.mean(dim=1)
        predicted = 1 - kept.mask
        return (errors * predicted).sum(dim=1) / predicted.sum(dim=1)

    def extra_loss(
        self,
        denoised: Float[Tensor, "n c h w"],
        noisy: Float[Tensor, "n c h w"],
        kept: KeptPatches | None,
        patch_size: int,
    ) -> Float[Tensor, " n"]:
        """What is learned beside denoising, added to each sample's loss with the weight it is returned with; zero here.

        `denoised` is D(noisy; sigma), with what the path predicts for dropped patches.
        """
        return denoised.new_zeros(len(denoised))
