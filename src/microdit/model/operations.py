"""The formulas of a block between its linear layers, as functions: attention, modulated norms, gates, sums of experts.

`FORMULAS` is how a block uses them. kernels/ has the same functions compiled for a CPU and for a GPU.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class WeightedNorm(nn.LayerNorm):
    """Layer norm with a weight and no bias. FSDP may bring the weight in bfloat16: it is computed in float32 then."""

    def __init__(self, dim: int, eps: float):
        super().__init__(dim, eps=eps, bias=False)

    def forward(self, input: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        weight = self.weight.float() if input.dtype == torch.float32 else self.weight
        return F.layer_norm(input, self.normalized_shape, weight, eps=self.eps)


def normalise(x: Float[Tensor, "n t h"], norm_eps: float) -> Float[Tensor, "n t h"]:
    """Layer norm without weight over the full width, all heads together: keeps attention logits bounded."""
    return F.layer_norm(x, x.shape[-1:], eps=norm_eps)


def split_heads(x: Float[Tensor, "n t h"], head_dim: int) -> Float[Tensor, "n heads t head_dim"]:
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def attend(
    queries: Float[Tensor, "n t h"],
    keys: Float[Tensor, "n l h"],
    values: Float[Tensor, "n l h"],
    head_dim: int,
    present: Bool[Tensor, "n l"] | None = None,
) -> Float[Tensor, "n t h"]:
    """Scaled dot-product attention, head by head; to those keys alone that are `present`, at least one a sample."""
    q, k, v = (split_heads(x, head_dim) for x in (queries, keys, values))
    attended_to = None if present is None else present[:, None, None]
    # torch's fused kernel is up to five times slower than these products in bfloat16 on a CPU (benchmarks/RESULTS.md).
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and k.shape[-2] <= 256:
        products = q * head_dim**-0.5 @ k.mT
        if attended_to is not None:
            products = products.masked_fill(~attended_to, -torch.inf)
        attended = products.softmax(dim=-1) @ v
    else:
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attended_to)
    return attended.transpose(1, 2).flatten(2)


def unpack(*packed: Float[Tensor, "n _ _"]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, from one tensor with all three side by side, or from queries and one with the rest."""
    if len(packed) == 1:
        queries, keys, values = packed[0].chunk(3, dim=-1)
        return queries, keys, values
    keys, values = packed[1].chunk(2, dim=-1)
    return packed[0], keys, values


def normalised_attention(
    *packed: Float[Tensor, "n _ _"], head_dim: int, norm_eps: float, present: Bool[Tensor, "n l"] | None = None
) -> Float[Tensor, "n t h"]:
    """Attention whose queries and keys are normalised first; from what `unpack` takes. `present`: as for `attend`."""
    queries, keys, values = unpack(*packed)
    return attend(normalise(queries, norm_eps), normalise(keys, norm_eps), values, head_dim, present)


def product_type(x: Tensor) -> torch.dtype:
    """The type that products of `x` have: under autocast a smaller one than its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else x.dtype


def as_factor(x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
    """As linear layers take it: they alone read what is normalised, and would cast it each for itself."""
    return x.to(product_type(x))


def plain_norm(x: Float[Tensor, "n t d"], norm: nn.LayerNorm) -> Float[Tensor, "n t d"]:
    """Layer norm with a weight, for linear layers."""
    return as_factor(norm(x))


def modulated_norm(
    x: Float[Tensor, "n t d"], norm: nn.LayerNorm, shift: Float[Tensor, "n d"], scale: Float[Tensor, "n d"]
) -> Float[Tensor, "n t d"]:
    """Adaptive layer norm: norm(x) * (1 + scale) + shift, one shift and scale a sample; for linear layers."""
    shift, scale = shift.to(x.dtype), scale.to(x.dtype)
    return as_factor(torch.addcmul(shift[:, None], norm(x), 1 + scale[:, None]))


def add_gated(
    x: Float[Tensor, "n t d"], gate: Float[Tensor, "n d"], y: Float[Tensor, "n t d"]
) -> Float[Tensor, "n t d"]:
    """x + gate * y, one gate a sample."""
    return x + gate.to(x.dtype)[:, None] * y


def add_gated_then_norm(
    x: Float[Tensor, "n t d"], gate: Float[Tensor, "n d"], y: Float[Tensor, "n t d"], norm: nn.LayerNorm
) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n t d"]]:
    """x + gate * y, and its norm."""
    x = add_gated(x, gate, y)
    return x, plain_norm(x, norm)


def add_then_modulated_norm(
    x: Float[Tensor, "n t d"],
    y: Float[Tensor, "n t d"] | None,
    norm: nn.LayerNorm,
    shift: Float[Tensor, "n d"],
    scale: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n t d"]]:
    """x + y, or x without y, and its modulated norm: one derivative for both uses of x."""
    x = x if y is None else x + y
    return x, modulated_norm(x, norm, shift, scale)


def silu_product(x: Float[Tensor, "n t f"], y: Float[Tensor, "n t f"]) -> Float[Tensor, "n t f"]:
    """silu(x) * y, the gate of SwiGLU."""
    return F.silu(x) * y


def gated_product(x: Float[Tensor, "n t d"], gate: nn.Linear, value: nn.Linear) -> Float[Tensor, "n t f"]:
    """silu(gate(x)) * value(x)."""
    return silu_product(gate(x), value(x))


def sum_over_experts(
    outputs: Float[Tensor, "e n k d"], weights: Float[Tensor, "n e k"] | None, slots: Int[Tensor, "n e t"]
) -> Float[Tensor, "n t d"]:
    """For each patch the sum of what the experts that chose it made of it, in the order of the experts.

    `slots` says where a patch stands among the k that an expert chose, k where it is not among them.
    """
    experts, n, k, _ = outputs.shape
    sums = outputs.new_zeros((), dtype=torch.float32)
    for e in range(experts):
        slot = slots[:, e]
        at = slot.clamp(max=k - 1)
        rows = outputs[e].flatten(0, 1)[at + k * torch.arange(n, device=slot.device)[:, None]].float()
        factor = (slot < k).float() if weights is None else weights[:, e].gather(1, at) * (slot < k)
        sums = sums + rows * factor[..., None]
    return sums.to(outputs.dtype)


def sum_over_experts_backward(
    gradient: Float[Tensor, "n t d"],
    outputs: Float[Tensor, "e n k d"],
    weights: Float[Tensor, "n e k"],
    rows: Int[Tensor, " enk"],
) -> tuple[Float[Tensor, "e n k d"], Float[Tensor, "n e k"]]:
    """The gradients of outputs and weights; `rows` are the patches that the experts chose, in the flattened batch."""
    gathered = gradient.flatten(0, 1).index_select(0, rows).view_as(outputs)
    of_outputs = (gathered * weights.transpose(0, 1)[..., None]).to(outputs.dtype)
    of_weights = (gathered.float() * outputs.float()).sum(dim=-1).to(weights.dtype)
    return of_outputs, of_weights.transpose(0, 1)


class Operations(NamedTuple):
    """What a block computes between its linear layers."""

    normalised_attention: Callable[..., Tensor]
    modulated_norm: Callable[..., Tensor]
    add_gated: Callable[..., Tensor]
    add_gated_then_norm: Callable[..., tuple[Tensor, Tensor]]
    add_then_modulated_norm: Callable[..., tuple[Tensor, Tensor]]
    gated_product: Callable[..., Tensor]
    sum_over_experts: Callable[..., Tensor]
    sum_over_experts_backward: Callable[..., tuple[Tensor, Tensor]]


FORMULAS = Operations(
    normalised_attention,
    modulated_norm,
    add_gated,
    add_gated_then_norm,
    add_then_modulated_norm,
    gated_product,
    sum_over_experts,
    sum_over_experts_backward,
)


def use_operations(network: nn.Module, operations: Operations) -> None:
    """Makes every layer of a network compute what is between its linear layers by these."""
    for module in network.modules():
        if hasattr(module, "operations"):
            cast(Any, module).operations = operations
