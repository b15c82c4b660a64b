"""The named networks of the paper, and the one function that every size goes through.

`conf/model/` gives the same numbers to the command line; a test keeps the two equal.
"""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np

from microdit.kinds import Limits, Ratio
from microdit.model.dit import DiT

Pair = Annotated[Sequence[Ratio], Limits(2, 2)]  # of the first and the last block


def layerwise_scaled_dit(depth: int, attention_ratios: Pair, ffn_ratios: Pair, **settings: Any) -> DiT:
    """A DiT whose blocks grow from the first ratio of each pair to the last (layer-wise scaling, section 3.3).

    `settings` are DiT's other arguments. Equal ratios in a pair switch the scaling off.
    """
    return DiT(**layerwise_scaled(depth, attention_ratios, ffn_ratios, **settings))


def layerwise_scaled(depth: int, attention_ratios: Pair, ffn_ratios: Pair, **settings: Any) -> dict[str, Any]:
    """The arguments of that DiT."""
    return {
        "depth": depth,
        "qkv_multipliers": np.linspace(attention_ratios[0], attention_ratios[1], depth).tolist(),
        "ffn_multipliers": np.linspace(ffn_ratios[0], ffn_ratios[1], depth).tolist(),
        **settings,
    }


# What both released networks share.
RELEASED: dict[str, Any] = {
    "patch_size": 2,
    "multiple_of": 256,
    "caption_channels": 1024,
    "norm_eps": 1e-6,
    "depth_init": True,
    "attention_ratios": (0.5, 1.0),
    "ffn_ratios": (0.5, 4.0),
    "use_patch_mixer": True,
    "patch_mixer_qkv_ratio": 1.0,
    "patch_mixer_mlp_ratio": 4.0,
    "use_bias": False,
    "num_experts": 8,
    "expert_capacity": 2.0,
    "experts_every_n": 2,
}
# What sets them apart.
XL: dict[str, Any] = {"dim": 1024, "depth": 28, "head_dim": 64, "patch_mixer_depth": 6, "patch_mixer_dim": 768}
TINY: dict[str, Any] = {"dim": 512, "depth": 16, "head_dim": 32, "patch_mixer_depth": 4, "patch_mixer_dim": 512}


def MicroDiT_XL_2(input_size: int = 32, in_channels: int = 4, pos_interp_scale: float = 1.0, **overrides: Any) -> DiT:
    """The paper's network: 1,165,442,320 parameters with 4 latent channels. `overrides` replace any DiT argument."""
    inputs = {"input_size": input_size, "in_channels": in_channels, "pos_interp_scale": pos_interp_scale}
    return layerwise_scaled_dit(**{**RELEASED, **XL, **inputs, **overrides})


def MicroDiT_Tiny_2(input_size: int = 32, in_channels: int = 4, pos_interp_scale: float = 1.0, **overrides: Any) -> DiT:
    """The network of the paper's ablations: 200,692,752 parameters. `overrides` replace any DiT argument."""
    inputs = {"input_size": input_size, "in_channels": in_channels, "pos_interp_scale": pos_interp_scale}
    return layerwise_scaled_dit(**{**RELEASED, **TINY, **inputs, **overrides})
