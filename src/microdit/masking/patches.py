"""Patches: cutting pictures into them, choosing which are kept, and moving tokens between all and the kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cut_patches(picture: Float[Tensor, "n c h w"], patch_size: int) -> Float[Tensor, "n t v"]:
    """The values of each patch, row by row, in FinalLayer's order: what `assemble_patches` puts together again."""
    return (
        picture.unflatten(3, (-1, patch_size))
        .unflatten(2, (-1, patch_size))  # [n, c, rows, row in patch, columns, column in patch]
        .permute(0, 2, 4, 3, 5, 1)
        .flatten(3)
        .flatten(1, 2)
    )


def assemble_patches(
    values: Float[Tensor, "n t v"], rows: int, columns: int, patch_size: int
) -> Float[Tensor, "n c h w"]:
    """Puts the patches' values back into a picture: the inverse of cutting it, for FinalLayer's order of values."""
    return (
        values.unflatten(2, (patch_size, patch_size, -1))
        .unflatten(1, (rows, columns))
        .permute(0, 5, 1, 3, 2, 4)
        .flatten(4, 5)
        .flatten(2, 3)
    )


@dataclass(frozen=True)
class KeptPatches:
    """The patches that the backbone sees: `indices` in the order they are processed, `mask` 0 kept and 1 dropped."""

    indices: Int[Tensor, "n k"]
    mask: Float[Tensor, "n t"]

    @property
    def rows(self) -> Int[Tensor, " nk"]:
        """The kept patches as rows of a flattened [n * t, ...] batch."""
        n, t = self.mask.shape
        return (self.indices + t * torch.arange(n, device=self.indices.device)[:, None]).flatten()

    def select(self, tokens: Float[Tensor, "n t d"]) -> Float[Tensor, "n k d"]:
        """The kept tokens alone."""
        n, k = self.indices.shape
        return tokens.flatten(0, 1).index_select(0, self.rows).view(n, k, -1)

    def place(self, kept: Float[Tensor, "n k d"], filler: Float[Tensor, "#n #t d"]) -> Float[Tensor, "n t d"]:
        """All patches again: the kept ones at their places, `filler`, one token or one a patch, everywhere else."""
        n, t = self.mask.shape
        everywhere = filler.to(kept.dtype).expand(n, t, -1).flatten(0, 1)
        return everywhere.index_copy(0, self.rows, kept.flatten(0, 1)).view(n, t, -1)


def kept_count(patches: int, mask_ratio: float, unit: str = "patches") -> int:
    """How many of `patches` patches (or of another `unit`) stay at `mask_ratio`: int(T * (1 - ratio)).

    Raises ValueError when the ratio is outside [0, 1) or when nothing would be left.
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"a mask ratio is the share of patches dropped, in [0, 1); got {mask_ratio}")
    kept = int(patches * (1 - mask_ratio))
    if kept == 0:
        raise ValueError(f"mask ratio {mask_ratio} leaves none of {patches} {unit}; lower it or use smaller {unit}")
    return kept


def keep_patches(uniform: Float[Tensor, "n t"], mask_ratio: float) -> KeptPatches | None:
    """Keeps the patches with the smallest of `uniform` (one draw from U[0, 1) a patch); None where none is dropped."""
    return keep_blocks(uniform, mask_ratio, grid=(1, uniform.shape[1]), block_size=1)


def keep_blocks(
    uniform: Float[Tensor, "n t"], mask_ratio: float, grid: tuple[int, int], block_size: int
) -> KeptPatches | None:
    """Keeps and drops squares of block_size x block_size patches together; None where none is dropped.

    A square goes by the draw of its first patch: the squares with the smallest stay. `grid` is (rows, columns) of
    patches, which `block_size` has to divide: ValueError if it does not.
    """
    patches = patches_of_squares(grid, block_size, uniform.device)
    draws = uniform[:, patches[:, 0]]
    blocks = draws.shape[1]
    kept = kept_count(blocks, mask_ratio, unit="patches" if block_size == 1 else "blocks of patches")
    if kept == blocks:
        return None
    return these_kept(patches[draws.argsort(dim=1, stable=True)[:, :kept]].flatten(1), uniform)


def keep_in_squares(
    uniform: Float[Tensor, "n t"], mask_ratio: float, grid: tuple[int, int], side: int
) -> KeptPatches | None:
    """Keeps as many patches of every square of side x side patches, those with its smallest draws, so that no part of
    the picture is without; None where none is dropped.

    Raises ValueError where squares do not divide the grid, or cannot share evenly what the ratio leaves.
    """
    patches = patches_of_squares(grid, side, uniform.device)
    squares, all_kept = len(patches), kept_count(patches.numel(), mask_ratio)
    kept, left_over = divmod(all_kept, squares)
    if left_over:
        raise ValueError(
            f"mask ratio {mask_ratio} leaves {all_kept} of {patches.numel()} patches, which {squares} squares of "
            f"{side} x {side} patches cannot share evenly: choose another ratio, or other squares"
        )
    if kept == side**2:
        return None
    smallest = uniform[:, patches].argsort(dim=2, stable=True)[:, :, :kept]  # [n, squares, kept]
    return these_kept(patches.expand(len(uniform), -1, -1).gather(2, smallest).flatten(1), uniform)


def patches_of_squares(grid: tuple[int, int], side: int, device: torch.device) -> Int[Tensor, "squares patches"]:
    """The patches, row by row, of each square of side x side patches; ValueError if squares do not divide the grid."""
    rows, columns = grid
    if rows % side or columns % side:
        raise ValueError(f"{rows} x {columns} patches cannot be cut into blocks of {side} x {side} patches")
    patches = torch.arange(rows * columns, device=device).view(rows // side, side, -1, side)
    return patches.transpose(1, 2).reshape(-1, side**2)


def these_kept(indices: Int[Tensor, "n k"], uniform: Float[Tensor, "n t"]) -> KeptPatches:
    return KeptPatches(indices, torch.ones_like(uniform, dtype=torch.float32).scatter(1, indices, 0.0))
