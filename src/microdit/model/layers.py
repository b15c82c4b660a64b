"""The small parts of the network: embeddings, the gated feed-forward layer, the output layer."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.operations import FORMULAS


def sincos_position_table(
    rows: int, columns: int, dim: int, scale: float, longest_wave: float = 10000.0
) -> Float[Tensor, "1 {rows}*{columns} {dim}"]:
    """2-D sine-cosine positions in the layout of MAE: the first dim/2 channels encode the column, the rest the row.

    Indices are divided by `scale`, so that a 512 px grid (scale 2) spans the positions a 256 px grid was trained on.
    Wavelengths grow from 2 pi towards 2 pi * `longest_wave`; those far beyond the grid tell its patches nothing.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine position needs a width divisible by 4, got dim={dim}")
    # omega_i = longest_wave^(-i / (dim/4)); float64 because the released tables were computed in it
    omega = longest_wave ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def encode(index: Tensor) -> Tensor:
        angles = (index.double() / scale)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    column_half = encode(torch.arange(columns))[None].expand(rows, -1, -1)
    row_half = encode(torch.arange(rows))[:, None].expand(-1, columns, -1)
    return torch.cat([column_half, row_half], dim=-1).reshape(1, rows * columns, dim).float()


def in_full_precision(
    layers: Callable[[Tensor], Tensor], x: Float[Tensor, "n d"], weight_dtype: torch.dtype
) -> Float[Tensor, "n _"]:
    """Layers with weights in float32 without autocast; weights that FSDP has brought in bfloat16 stay under it.

    For the vectors that condition every patch: there are few of them, and what is rounded there moves all patches
    together, so that experts choose others. With this the output under autocast is up to a third nearer to float32's.
    """
    device_type = x.device.type
    if weight_dtype != torch.float32 or device_type == "meta" or not torch.is_autocast_enabled(device_type):
        return layers(x)
    with torch.autocast(device_type, enabled=False):
        return layers(x.float())


class PatchEmbedding(nn.Module):
    """Cuts latents into p x p patches and maps each to a token, row by row."""

    def __init__(self, patch_size: int, in_channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        # Contiguous: sums would keep the transposed layout, and every layer norm would copy it.
        return self.proj(latents).flatten(2).transpose(1, 2).contiguous()


class NoiseEmbedding(nn.Module):
    """Embeds the noise label ln(sigma)/4: a sinusoid of 512 channels, then two linear layers."""

    sinusoid_dim = 512

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(self.sinusoid_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))

    def forward(self, noise_label: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        half = self.sinusoid_dim // 2
        frequencies = torch.exp(torch.arange(half, device=noise_label.device) * (-math.log(10000.0) / half))
        angles = noise_label.float()[:, None] * frequencies
        return in_full_precision(
            self.mlp, torch.cat([angles.cos(), angles.sin()], dim=-1), next(self.parameters()).dtype
        )


class NormedMLP(nn.Module):
    """fc2(norm(gelu(fc1(x)))): how captions enter the network, and how their mean becomes conditioning."""

    def __init__(self, in_dim: int, dim: int, norm_eps: float):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=norm_eps, bias=False)
        self.fc2 = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch d"]:
        return self.fc2(self.norm(F.gelu(self.fc1(x), approximate="tanh")))


class CaptionEmbedding(nn.Module):
    """Brings the text encoder's vectors to the width of the backbone."""

    def __init__(self, caption_channels: int, dim: int, norm_eps: float):
        super().__init__()
        self.y_proj = NormedMLP(caption_channels, dim, norm_eps)

    def forward(self, captions: Float[Tensor, "n l dc"]) -> Float[Tensor, "n l d"]:
        return self.y_proj(captions)


def change_width(from_dim: int, to_dim: int, bias: bool, norm_eps: float) -> nn.Module:
    """Tokens of one width for blocks of another: norm and linear layer, or nothing where the widths are equal."""
    if from_dim == to_dim:
        return nn.Identity()
    return nn.Sequential(nn.LayerNorm(from_dim, eps=norm_eps, bias=False), nn.Linear(from_dim, to_dim, bias=bias))


def round_up(value: int, multiple_of: int) -> int:
    """The smallest multiple of `multiple_of` that is not below `value`."""
    return multiple_of * math.ceil(value / multiple_of)


class SwiGLU(nn.Module):
    """Gated feed-forward layer w3(silu(w1 x) * w2 x); two thirds of dim * ratio keep its cost that of a plain one."""

    operations = FORMULAS

    def __init__(self, dim: int, ratio: float, multiple_of: int, bias: bool):
        super().__init__()
        hidden = round_up(int(2 * int(dim * ratio) / 3), multiple_of)
        self.w1 = nn.Linear(dim, hidden, bias=bias)
        self.w2 = nn.Linear(dim, hidden, bias=bias)
        self.w3 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return self.w3(self.operations.silu_product(self.w1(x), self.w2(x)))


class GELUFeedForward(nn.Module):
    """Plain feed-forward layer w2(gelu(w1 x)): what SwiGLU is compared with, as wide as it costs the same."""

    def __init__(self, dim: int, ratio: float, multiple_of: int, bias: bool):
        super().__init__()
        hidden = round_up(int(dim * ratio), multiple_of)
        self.w1 = nn.Linear(dim, hidden, bias=bias)
        self.w2 = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        return self.w2(F.gelu(self.w1(x)))


class ConditioningLinear(nn.Sequential):
    """adaLN: the conditioning vector through GELU-tanh and one linear layer, whose outputs shift, scale and gate."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__(nn.GELU(approximate="tanh"), nn.Linear(dim, out_dim))

    def forward(self, conditioning: Float[Tensor, "n d"]) -> Float[Tensor, "n _"]:
        return in_full_precision(super().forward, conditioning, next(self.parameters()).dtype)


class FinalLayer(nn.Module):
    """Maps a token to the p * p * C values of its patch, ordered (row in patch, column in patch, channel)."""

    operations = FORMULAS

    def __init__(self, dim: int, patch_values: int, norm_eps: float):
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, eps=norm_eps, bias=False)
        self.linear = nn.Linear(dim, patch_values)
        self.adaLN_modulation = ConditioningLinear(dim, 2 * dim)

    def forward(self, x: Float[Tensor, "n t d"], conditioning: Float[Tensor, "n d"]) -> Float[Tensor, "n t v"]:
        shift, scale = self.adaLN_modulation(conditioning).to(x.dtype).chunk(2, dim=-1)
        return self.linear(self.operations.modulated_norm(x, self.norm_final, shift, scale))


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
