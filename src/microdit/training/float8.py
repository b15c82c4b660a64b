"""Large products in eight bits: forward and backward pass of a block's linear layers by torchao."""

import copy
from typing import Any

from torch import Tensor, nn

from microdit.model.blocks import CaptionBlock, DiTBlock
from microdit.model.dit import DiT

MULTIPLE = 16  # of both sides, as the cards' instructions take matrices
CONDITIONING = "adaLN_modulation"
SMALLEST = 512  # side of a matrix whose product pays for casting both factors


def in_float8(network: DiT, emulated: bool = False) -> DiT:
    """The same network, on the same weights, whose large linear layers multiply in float8 with one scale a tensor:
    e4m3 for what is multiplied forward, e5m2 for gradients. Weights stay as they are kept, under their names.

    `emulated`: rounded alike, but multiplied in the precision around it, for processors that cannot. Experts, whose
    products are batched, keep their precision, as do norms, gates and everything outside the blocks.
    """
    from torchao.float8 import (  # pyright: ignore[reportMissingImports] - the extra `fp8`
        Float8LinearConfig,
        convert_to_float8_training,
    )

    shared: dict[int, Any] = {id(each): each for each in tensors_of(network)}
    converted = copy.deepcopy(network, shared)
    # Tokens of a batch need not be a multiple of 16, which the product for a weight's gradient adds up over.
    config = Float8LinearConfig(pad_inner_dim=True, emulate=emulated)
    for block in converted.modules():
        if isinstance(block, DiTBlock | CaptionBlock):
            # What is computed of the conditioning vector is in full precision, and a row a sample.
            convert_to_float8_training(
                block, config=config, module_filter_fn=lambda layer, name: is_large(layer) and CONDITIONING not in name
            )
    return converted


def tensors_of(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]


def is_large(layer: nn.Module) -> bool:
    """Whether a layer's product pays."""
    if not isinstance(layer, nn.Linear):
        return False
    sides = layer.in_features, layer.out_features
    return min(sides) >= SMALLEST and not any(side % MULTIPLE for side in sides)
