"""The operations of a block compiled for a GPU by torch.compile: each once for all blocks, whatever their widths."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from microdit.model import operations as formulas
from microdit.model.operations import Operations, as_factor

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
# Graphs of one operation: with and without gradients, under autocast or not, for one token or one sample alone.
MOST_GRAPHS = 32


def compiled(function: Compiled) -> Compiled:
    """Compiled when it is called, with symbols for all sizes: layer-wise scaling gives each block widths of its own."""
    return torch.compile(function, dynamic=True, fullgraph=True)


@functools.cache
def compiled_operations() -> Operations:
    """The formulas of model/operations.py, each compiled when it is first called, with and without gradients."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    attention = compiled(formulas.normalised_attention)
    modulated_norm = compiled(modulated_norm_of_weight)
    add_gated_then_norm = compiled(add_gated_then_norm_of_weight)
    add_then_modulated_norm = compiled(add_then_modulated_norm_of_weight)
    return Operations(
        attention,
        lambda x, norm, shift, scale: modulated_norm(x, weight_of(norm), norm.eps, shift, scale),
        compiled(formulas.add_gated),
        lambda x, gate, y, norm: add_gated_then_norm(x, gate, y, weight_of(norm), norm.eps),
        lambda x, y, norm, shift, scale: add_then_modulated_norm(x, y, weight_of(norm), norm.eps, shift, scale),
        compiled(formulas.silu_product),
        compiled(formulas.sum_over_experts),
    )


def weight_of(norm: nn.LayerNorm) -> Float[Tensor, " d"]:
    """As a view, because the compiler takes the sizes of parameters for constants."""
    return norm.weight.view(-1)


def norm_of_weight(x: Float[Tensor, "n t d"], weight: Float[Tensor, " d"], eps: float) -> Float[Tensor, "n t d"]:
    return F.layer_norm(x, weight.shape, weight, eps=eps)


def modulated_norm_of_weight(
    x: Float[Tensor, "n t d"],
    weight: Float[Tensor, " d"],
    eps: float,
    shift: Float[Tensor, "n d"],
    scale: Float[Tensor, "n d"],
) -> Float[Tensor, "n t d"]:
    return as_factor(torch.addcmul(shift[:, None], norm_of_weight(x, weight, eps), 1 + scale[:, None]))


def add_gated_then_norm_of_weight(
    x: Float[Tensor, "n t d"],
    gate: Float[Tensor, "n d"],
    y: Float[Tensor, "n t d"],
    weight: Float[Tensor, " d"],
    eps: float,
) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n t d"]]:
    x = formulas.add_gated(x, gate, y)
    return x, as_factor(norm_of_weight(x, weight, eps))


def add_then_modulated_norm_of_weight(
    x: Float[Tensor, "n t d"],
    y: Float[Tensor, "n t d"],
    weight: Float[Tensor, " d"],
    eps: float,
    shift: Float[Tensor, "n d"],
    scale: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n t d"]]:
    x = x + y
    return x, modulated_norm_of_weight(x, weight, eps, shift, scale)
