"""Small random autoencoders of diffusers' own classes, in the files that diffusers reads."""

from pathlib import Path
from typing import Any

import torch

SCALE = 0.5


def write_small_dc_ae(path: Path) -> Path:
    """32 channels at 32 pixels a latent, as dc_ae_f32."""
    from diffusers import AutoencoderDC

    side: dict[str, Any] = {}
    for name in ("encoder", "decoder"):
        side |= {
            f"{name}_block_out_channels": (4, 4, 4, 8, 16, 32),
            f"{name}_layers_per_block": (1,) * 6,
            f"{name}_block_types": ("ResBlock",) * 5 + ("EfficientViTBlock",),
            f"{name}_qkv_multiscales": ((), (), (), (), (), (5,)),
        }
    torch.manual_seed(0)
    AutoencoderDC(latent_channels=32, attention_head_dim=4, scaling_factor=SCALE, **side).save_pretrained(path)
    return path


def write_small_flux_vae(path: Path) -> Path:
    """16 channels at 8 pixels a latent with a shift, as flux and e2e_vae."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).save_pretrained(path)
    return path
