"""SPRINT (Park et al. 2025, arXiv 2510.21986): a sparse deep path beside a dense shallow one, fused before the end."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from microdit.kinds import SettingsError, Share
from microdit.masking.maskdit import LEARNED_TOKEN_STD
from microdit.masking.patches import KeptPatches, keep_in_squares
from microdit.masking.token_path import NetworkParts
from microdit.masking.tread import Tread


@dataclass(frozen=True)
class DeepPath(KeptPatches):
    """The patches on the deep path, and `taken`: whether a sample takes it at all."""

    taken: Bool[Tensor, " n"]


class Sprint(Tread):
    """The first blocks see all patches (f), the middle ones the kept (g). Where patches were dropped a learned token
    stands in for g; then both are fused, h = W [g; f] + b, and the last blocks see all again. The loss is on all.

    With the chance `path_drop` a sample has no deep path in training: the token stands for g everywhere. So the
    shallow path learns to denoise by itself, badly, which is what path-drop guidance leads away from (section 3.3).
    `drops_unmasked` says whether that also happens at mask ratio 0, as in the paper's fine-tuning on all patches.

    W starts as [1; 0], so that at mask ratio 0 a fresh network is that without masking. `first_share` and `last_share`
    of the blocks, at least one each, run on all patches (2 and 2 of the paper's 28). Of every square of `square_size`
    x `square_size` patches as many are kept; with None they are kept at random over the whole picture.
    """

    def __init__(
        self,
        first_share: float,
        last_share: float,
        path_drop: Share,
        drops_unmasked: bool = False,
        square_size: int | None = 2,
    ) -> None:
        super().__init__(first_share, last_share)
        if not 0 <= path_drop < 1:
            raise ValueError(f"masking.path_drop is the chance that a sample has no deep path, in [0, 1): {path_drop}")
        if square_size is not None and square_size < 2:
            raise ValueError(f"masking.square_size is 2 or more patches, or null for no squares; got {square_size}")
        self.path_drop, self.drops_unmasked, self.square_size = path_drop, drops_unmasked, square_size

    def make_layers(self, network: NetworkParts) -> None:
        super().make_layers(network)
        dim = network.dim
        self.learned_token = nn.Parameter(LEARNED_TOKEN_STD * torch.randn(1, 1, dim))
        # W - [1; 0] and b: parameters, not a linear layer, which the network would fill at random.
        self.fusion_weight, self.fusion_bias = nn.Parameter(torch.zeros(dim, 2 * dim)), nn.Parameter(torch.zeros(dim))

    def keep(self, uniform: Float[Tensor, "n t"], mask_ratio: float, grid: tuple[int, int]) -> KeptPatches | None:
        """The patches of the deep path, with the chance of `path_drop` beside them in training.

        The largest of t draws is below p^(1/t) with the chance p, whichever patches have the smallest: so it decides,
        and no number is drawn that the other methods have not.
        """
        if self.square_size is None:
            kept = super().keep(uniform, mask_ratio, grid)
        else:
            kept = keep_in_squares(uniform, mask_ratio, grid, self.square_size)
        if not self.training or self.path_drop == 0:
            return kept
        n, t = uniform.shape
        if kept is None:
            if not self.drops_unmasked:
                return None
            everything = torch.arange(t, device=uniform.device).expand(n, t)
            kept = KeptPatches(everything, torch.zeros_like(uniform, dtype=torch.float32))
        return DeepPath(kept.indices, kept.mask, uniform.amax(dim=1) >= self.path_drop ** (1 / t))

    def weak_pass(self, samples: int, grid: tuple[int, int], device: torch.device) -> KeptPatches:
        """No patch on the deep path, whose blocks then cost nothing. SettingsError where that was not learned."""
        if self.path_drop == 0:
            raise SettingsError(
                "guidance by path drop is for networks that were trained with masking.path_drop above 0"
            )
        rows, columns = grid
        none = torch.empty(samples, 0, dtype=torch.long, device=device)
        return KeptPatches(none, torch.ones(samples, rows * columns, device=device))

    def forward(self, network, tokens, conditioning, kept, grid):
        shallow = network.backbone(tokens, conditioning, end=self.leaves)
        if kept is None:
            # Unused without a mask, but with a gradient of zero: DDP wants one of the same weights in every step.
            deep = network.backbone(shallow, conditioning, self.leaves, self.returns) + 0 * self.learned_token
        elif kept.indices.shape[1] == 0:
            deep = self.learned_token.expand_as(shallow)
        else:
            sparse = network.backbone(kept.select(shallow), conditioning, self.leaves, self.returns)
            deep = kept.place(sparse, self.learned_token)
            if isinstance(kept, DeepPath):
                deep = torch.where(kept.taken[:, None, None], deep, self.learned_token.to(deep.dtype))
        fused = deep + F.linear(torch.cat([deep, shallow], dim=-1), self.fusion_weight, self.fusion_bias)
        return network.backbone(fused, conditioning, self.returns), None
