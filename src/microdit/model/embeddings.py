"""What enters the network: patches with their positions, the noise level, captions."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model.operations import WeightedNorm


def sincos_position_table(
    rows: int, columns: int, dim: int, scale: float, max_period: float = 10000.0
) -> Float[Tensor, "1 {rows}*{columns} {dim}"]:
    """2-D sine-cosine positions in the layout of MAE: the first dim/2 channels encode the column, the rest the row.

    Indices are divided by `scale`, so that a 512 px grid (scale 2) spans the positions a 256 px grid was trained on.
    Wavelengths grow from 2 pi towards 2 pi * `max_period`; those far beyond the grid tell its patches nothing.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine position needs a width divisible by 4, got dim={dim}")
    # omega_i = max_period^(-i / (dim/4)); float64 because the released tables were computed in it
    omega = max_period ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def encode(index: Tensor) -> Tensor:
        angles = (index.double() / scale)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    column_half = encode(torch.arange(columns))[None].expand(rows, -1, -1)
    row_half = encode(torch.arange(rows))[:, None].expand(-1, columns, -1)
    return torch.cat([column_half, row_half], dim=-1).reshape(1, rows * columns, dim).float()


class PatchEmbedding(nn.Module):
    """Cuts latents into p x p patches and maps each to a token, row by row."""

    def __init__(self, patch_size: int, in_channels: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        # Contiguous: sums would keep the transposed layout, and every layer norm would copy it.
        return self.proj(latents).flatten(2).transpose(1, 2).contiguous()


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


class QualityEmbedding(NoiseEmbedding):
    """Embeds how good a picture is, from 0 to 1, as noise levels are; NaN, a quality that is not known, gives zero."""

    def forward(self, quality: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        known = quality.isfinite()
        return super().forward(torch.where(known, quality, 0.0)) * known[:, None]


class NormedMLP(nn.Module):
    """fc2(norm(gelu(fc1(x)))): how captions enter the network, and how their mean becomes conditioning."""

    def __init__(self, in_dim: int, dim: int, norm_eps: float):
        super().__init__()
        self.fc1 = nn.Linear(in_dim, dim)
        self.norm = WeightedNorm(dim, norm_eps)
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
    return nn.Sequential(WeightedNorm(from_dim, norm_eps), nn.Linear(from_dim, to_dim, bias=bias))
