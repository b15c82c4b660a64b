"""The operations of a block on a GPU: the formulas of model/operations.py by the kernels of kernels.py.

Triton compiles each kernel when it is first launched, in seconds, and keeps it for later processes
(TRITON_CACHE_DIR). Layer-wise scaling gives each block widths of its own, for which nothing is compiled anew.
"""

import functools
import importlib
import os
from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from microdit.model import operations as formulas
from microdit.model.operations import Operations, attend, product_type

WIDEST_ROW = 8192  # of numbers that one program holds; wider rows go through the formulas
PART = 16  # rows of a sample whose sums one program makes
HALVES = (torch.bfloat16, torch.float16)
# What one program of attention holds, by registers: of several, which work while others wait for memory.
FORWARD = {"QUERIES": 64, "num_warps": 4}
FEW_QUERIES = {"QUERIES": 64, "KEYS": 32, "num_warps": 4, "num_stages": 1}
FEW_KEYS = {"QUERIES": 32, "KEYS": 128, "num_warps": 4, "num_stages": 1}


@functools.cache
def gpu_operations() -> Operations:
    """The operations. Rows too wide for the kernels, and tensors that are not on a GPU, go through the formulas."""
    return Operations(
        normalised_attention,
        modulated_norm,
        add_gated,
        add_gated_then_norm,
        add_then_modulated_norm,
        gated_product,
        sum_over_experts,
        sum_over_experts_backward,
    )


def can_be_launched(x: Tensor) -> bool:
    there = x.is_cuda or (x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1")
    return there and x.shape[-1] <= WIDEST_ROW and x.numel() > 0


@functools.cache
def load_kernels() -> ModuleType:
    """The kernels; ImportError where Triton is not installed, which torch brings along only for some systems."""
    # Triton's next release changes this default, and warns of it; results stay those that were tested.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    return importlib.import_module("microdit.kernels.gpu.kernels")


def launch(kernel: str, grid: tuple[int, ...], *arguments: Any, **held: int) -> None:
    """Runs a kernel on the GPU of its tensors; fake tensors, with which memory is counted, have no numbers."""
    tensors = [each for each in arguments if isinstance(each, Tensor)]
    if isinstance(tensors[0], FakeTensor):
        return
    with torch.cuda.device_of(tensors[0]):
        getattr(load_kernels(), kernel)[grid](*arguments, **held)


def block_of(width: int) -> dict[str, int]:
    """The power of two that a row fits, and as many warps as hold it well."""
    block = max(16, 1 << (width - 1).bit_length())
    return {"BLOCK": block, "num_warps": min(16, max(1, block // 256))}


def numbers_in_line(x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The rows of a modulation may lie apart, as parts of a wider tensor, but not the numbers of a row."""
    return x if x.stride(-1) == 1 else x.contiguous()


def launch_norm(
    x: Float[Tensor, "n t d"],
    y: Float[Tensor, "n t d"] | None,
    gate: Float[Tensor, "n d"] | None,
    weight: Float[Tensor, " d"],
    shift: Float[Tensor, "n d"] | None,
    scale: Float[Tensor, "n d"] | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + gate y (x itself without y), its norm, and each row's mean and reciprocal deviation."""
    n, tokens, width = x.shape
    total = x if y is None else torch.empty_like(x, dtype=torch.promote_types(x.dtype, y.dtype))
    normed = torch.empty_like(x, dtype=product_type(x))
    mean, rstd = (torch.empty(n * tokens, dtype=torch.float32, device=x.device) for _ in range(2))
    launch(
        "norm_forward",
        (n * tokens,),
        *(x, y, gate, weight, shift, scale, total, normed, mean, rstd, tokens, width),
        *(0 if rows is None else rows.stride(0) for rows in (gate, shift, scale)),
        eps,
        ADDS=y is not None,
        GATED=gate is not None,
        MODULATED=scale is not None,
        **block_of(width),
    )
    return total, normed, mean, rstd


class NormGradients(NamedTuple):
    """The gradients of launch_norm's arguments; None for those that were None. Without a gate that of `y` is x's."""

    x: Tensor
    y: Tensor | None
    gate: Tensor | None
    weight: Tensor
    shift: Tensor | None
    scale: Tensor | None


def launch_norm_backward(
    of_total: Float[Tensor, "n t d"] | None,
    of_normed: Float[Tensor, "n t d"],
    total: Float[Tensor, "n t d"],
    y: Float[Tensor, "n t d"] | None,
    gate: Float[Tensor, "n d"] | None,
    weight: Float[Tensor, " d"],
    scale: Float[Tensor, "n d"] | None,
    mean: Float[Tensor, " nt"],
    rstd: Float[Tensor, " nt"],
) -> NormGradients:
    """From the gradients of x + gate y and of its norm, which has a gate or is modulated; a gate needs `y`."""
    n, tokens, width = total.shape
    of_total = None if of_total is None else of_total.contiguous()
    of_x, of_y = torch.empty_like(total), None if gate is None or y is None else torch.empty_like(y)
    parts = -(-tokens // PART)
    sums = torch.empty(n, parts, 2, width, dtype=torch.float32, device=total.device)
    launch(
        "norm_backward",
        (n, parts),
        *(of_total, of_normed.contiguous(), total, y, gate, weight, scale, mean, rstd, of_x, of_y, sums, tokens, width),
        *(0 if rows is None else rows.stride(0) for rows in (gate, scale)),
        ADDS=of_total is not None,
        GATED=gate is not None,
        MODULATED=scale is not None,
        PART=PART,
        **block_of(width),
    )
    of_weight = torch.empty(n, width, dtype=torch.float32, device=total.device)
    of_scale = None if scale is None else torch.empty_like(scale, memory_format=torch.contiguous_format)
    kind = next((rows.dtype for rows in (gate, scale) if rows is not None), torch.float32)
    of_other = torch.empty(n, width, dtype=kind, device=total.device)
    launch(
        "norm_backward_of_rows",
        (n,),
        *(sums, weight, scale, of_weight, of_scale, of_other, parts, width, 0 if scale is None else scale.stride(0)),
        MODULATED=scale is not None,
        **block_of(width),
    )
    of_gate, of_shift = (of_other, None) if scale is None else (None, of_other)
    return NormGradients(of_x, of_y, of_gate, of_weight.sum(dim=0).to(weight.dtype), of_shift, of_scale)


class ModulatedNorm(torch.autograd.Function):
    """norm(x) (1 + scale) + shift."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
        x, shift, scale = x.contiguous(), numbers_in_line(shift), numbers_in_line(scale)
        _, normed, *statistics = launch_norm(x, None, None, weight, shift, scale, eps)
        ctx.save_for_backward(x, weight, scale, *statistics)
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, *statistics = ctx.saved_tensors
        found = launch_norm_backward(None, gradients[0], x, None, None, weight, scale, *statistics)
        return found.x, found.weight, found.shift, found.scale, None


class AddGatedThenNorm(torch.autograd.Function):
    """x + gate y, and its norm."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        gate, y = numbers_in_line(gate), y.contiguous()
        total, normed, *statistics = launch_norm(x.contiguous(), y, gate, weight, None, None, eps)
        ctx.save_for_backward(total, y, gate, weight, *statistics)
        ctx.kind = x.dtype
        return total, normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total, y, gate, weight, *statistics = ctx.saved_tensors
        of_total, of_normed = gradients
        found = launch_norm_backward(of_total, of_normed, total, y, gate, weight, None, *statistics)
        return found.x.to(ctx.kind), found.gate, found.y, found.weight, None


class AddThenModulatedNorm(torch.autograd.Function):
    """x + y, or x without y, and its modulated norm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor | None, weight: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        x, y = x.contiguous(), None if y is None else y.contiguous()
        shift, scale = numbers_in_line(shift), numbers_in_line(scale)
        total, normed, *statistics = launch_norm(x, y, None, weight, shift, scale, eps)
        ctx.save_for_backward(total, weight, scale, *statistics)
        ctx.kinds = x.dtype, None if y is None else y.dtype
        return total.view_as(total), normed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total, weight, scale, *statistics = ctx.saved_tensors
        of_total, of_normed = gradients
        found = launch_norm_backward(of_total, of_normed, total, None, None, weight, scale, *statistics)
        of_x, of_y = (None if kind is None else found.x.to(kind) for kind in ctx.kinds)
        return of_x, of_y, found.weight, found.shift, found.scale, None


class AddGated(torch.autograd.Function):
    """x + gate y."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
        x, gate, y = x.contiguous(), numbers_in_line(gate), y.contiguous()
        n, tokens, width = x.shape
        out = torch.empty_like(x, dtype=torch.promote_types(x.dtype, y.dtype))
        sizes = tokens, width, gate.stride(0)
        launch("add_gated_forward", (n * tokens,), x, y, gate, out, *sizes, **block_of(width))
        ctx.save_for_backward(gate, y)
        ctx.kind = x.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, y = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        n, tokens, width = y.shape
        parts = -(-tokens // PART)
        of_y = torch.empty_like(y)
        of_gate = torch.empty(n, parts, width, dtype=torch.float32, device=y.device)
        sizes = tokens, width, gate.stride(0)
        launch(
            "add_gated_backward",
            (n, parts),
            *(gradient, y, gate, of_y, of_gate, *sizes),
            PART=PART,
            **block_of(width),
        )
        return gradient.to(ctx.kind), of_gate.sum(dim=1).to(gate.dtype), of_y


class SiluProduct(torch.autograd.Function):
    """silu(x) y of x and y side by side."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> Tensor:
        packed = packed.contiguous()
        *rows, wide = packed.shape
        width = wide // 2
        out = packed.new_empty(*rows, width)
        launch("silu_product_forward", (out.numel() // width,), packed, out, width, **block_of(width))
        ctx.save_for_backward(packed)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (packed,) = ctx.saved_tensors
        gradient, of_packed = gradients[0].contiguous(), torch.empty_like(packed)
        width = gradient.shape[-1]
        grid = (gradient.numel() // width,)
        launch("silu_product_backward", grid, gradient, packed, of_packed, width, **block_of(width))
        return of_packed


def launch_normalise(
    packed: Float[Tensor, "n t _"], parts: int, normalised: int, eps: float, *, writes: bool = True
) -> tuple[Tensor | None, Tensor, Tensor]:
    """The first `normalised` of the parts that lie side by side, each normalised; and means and reciprocal deviations,
    one after another, which are all there is without `writes`."""
    n, tokens, wide = packed.shape
    rows, width = n * tokens, wide // parts
    out = packed.new_empty(normalised, n, tokens, width) if writes else None
    mean, rstd = (torch.empty(normalised, rows, dtype=torch.float32, device=packed.device) for _ in range(2))
    sizes = rows, parts, width, eps
    launch("normalise_forward", (rows, normalised), packed, out, mean, rstd, *sizes, WRITES=writes, **block_of(width))
    return out, mean, rstd


def launch_normalise_backward(
    gradients: Sequence[Float[Tensor, "n t d"]],
    packed: Float[Tensor, "n t _"],
    statistics: Sequence[Float[Tensor, "parts nt"]],
    of_packed: Float[Tensor, "n t _"],
    normalised: int,
) -> None:
    """Writes the gradients of the first parts, as many as are given; they may be those very parts of `of_packed`."""
    n, tokens, wide = packed.shape
    width = gradients[0].shape[-1]
    # A view of every row in turn; where samples lie apart, as no result of ours does, that is a copy.
    given = [numbers_in_line(gradient.flatten(0, 1)) for gradient in gradients]
    given += [given[0]] * (3 - len(given))
    launch(
        "normalise_backward",
        (n * tokens, len(gradients)),
        *(*given, packed, *statistics, of_packed, n * tokens, wide // width, width),
        *(gradient.stride(0) for gradient in given),
        NORMALISED=normalised,
        **block_of(width),
    )


class NormaliseFirst(torch.autograd.Function):
    """Cuts [n, t, parts * width] into its parts, of which the first `normalised` are normalised row by row."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, parts: int, normalised: int, eps: float) -> tuple[Tensor, ...]:
        packed = packed.contiguous()
        out, *statistics = launch_normalise(packed, parts, normalised, eps)
        assert out is not None
        ctx.save_for_backward(packed, *statistics)
        ctx.normalised = normalised
        return *out.unbind(), *packed.chunk(parts, dim=-1)[normalised:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        packed, *statistics = ctx.saved_tensors
        of_packed = torch.empty_like(packed)
        launch_normalise_backward(gradients, packed, statistics, of_packed, ctx.normalised)
        return of_packed, None, None, None


class NormalisedAttentionToFew(torch.autograd.Function):
    """Attention to no more keys than one program holds, head by head; takes and gives what normalised_attention does.

    Queries and keys are normalised as they are read. Gradients are written where they belong, side by side, and those
    of queries and keys go through their norms there.
    """

    @staticmethod
    def forward(ctx: Any, head_dim: int, norm_eps: float, *packed: Tensor) -> Tensor:
        packed = tuple(x.contiguous() for x in packed)
        inputs = queries, keys, _ = formulas.unpack(*packed)
        if len(packed) == 1:
            statistics = launch_normalise(packed[0], 3, 2, norm_eps, writes=False)[1:]
        else:
            of_queries = launch_normalise(packed[0], 1, 1, norm_eps, writes=False)[1:]
            statistics = *of_queries, *launch_normalise(packed[1], 2, 1, norm_eps, writes=False)[1:]
        n, tokens, width = queries.shape
        heads, length = width // head_dim, keys.shape[1]
        out = queries.new_empty(n, tokens, width)
        logsumexp = torch.empty(n, heads, tokens, dtype=torch.float32, device=queries.device)
        sizes = [step for x in inputs for step in x.stride()[:2]]
        sizes += [heads, tokens, length, head_dim**-0.5]
        held = {**FORWARD, "KEYS": max(16, 1 << (length - 1).bit_length())}
        grid = n * heads, -(-tokens // held["QUERIES"])
        inputs = *inputs, *of_queries_and_keys(statistics)
        launch("attention_forward", grid, *inputs, out, logsumexp, *sizes, HEAD=head_dim, **held)
        ctx.save_for_backward(*packed, *statistics, out, logsumexp)
        ctx.head_dim, ctx.sizes, ctx.packed = head_dim, sizes, len(packed)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        packed, (*statistics, out, logsumexp) = ctx.saved_tensors[: ctx.packed], ctx.saved_tensors[ctx.packed :]
        of_packed = [torch.empty_like(x) for x in packed]
        of_queries, of_keys, _ = of_inputs = formulas.unpack(*of_packed)
        few_queries = out.shape[1] <= FEW_QUERIES["QUERIES"]
        kernel = "attention_backward_few_queries" if few_queries else "attention_backward_few_keys"
        inputs = *formulas.unpack(*packed), *of_queries_and_keys(statistics)
        launch(
            kernel,
            (out.shape[0] * (out.shape[2] // ctx.head_dim),),
            *(gradients[0].contiguous(), out, logsumexp, *inputs, *of_inputs, *ctx.sizes),
            *(x.stride(1) for x in of_inputs),
            HEAD=ctx.head_dim,
            **(FEW_QUERIES if few_queries else FEW_KEYS),
        )
        if len(packed) == 1:
            launch_normalise_backward((of_queries, of_keys), packed[0], statistics, of_packed[0], 2)
        else:
            launch_normalise_backward((of_queries,), packed[0], statistics[:2], of_packed[0], 1)
            launch_normalise_backward((of_keys,), packed[1], statistics[2:], of_packed[1], 1)
        return None, None, *of_packed


def of_queries_and_keys(statistics: Sequence[Float[Tensor, "parts nt"]]) -> Sequence[Float[Tensor, "_ nt"]]:
    """Mean and reciprocal deviation of queries, then of keys; from those of both together, or one after the other."""
    if len(statistics) == 4:
        return statistics
    mean, rstd = statistics
    return mean[:1], rstd[:1], mean[1:], rstd[1:]


def is_attention_to_few(*packed: Float[Tensor, "n _ _"], head_dim: int) -> bool:
    """Whether one program holds all keys of a head, in a type and width that matrix units take."""
    return packed[0].dtype in HALVES and packed[-1].shape[1] <= FEW_KEYS["KEYS"] and head_dim in (16, 32, 64, 128)


def normalised_attention(
    *packed: Float[Tensor, "n _ _"], head_dim: int, norm_eps: float, present: Bool[Tensor, "n l"] | None = None
) -> Float[Tensor, "n t h"]:
    if not all(can_be_launched(x) for x in packed):
        return formulas.normalised_attention(*packed, head_dim=head_dim, norm_eps=norm_eps, present=present)
    if present is None and is_attention_to_few(*packed, head_dim=head_dim):  # that kernel attends to all keys
        return NormalisedAttentionToFew.apply(head_dim, norm_eps, *packed)
    if len(packed) == 1:
        queries, keys, values = NormaliseFirst.apply(packed[0], 3, 2, norm_eps)
    else:
        (queries,) = NormaliseFirst.apply(packed[0], 1, 1, norm_eps)
        keys, values = NormaliseFirst.apply(packed[1], 2, 1, norm_eps)
    return attend(queries, keys, values, head_dim, present)


def modulated_norm(
    x: Float[Tensor, "n t d"], norm: nn.LayerNorm, shift: Float[Tensor, "n d"], scale: Float[Tensor, "n d"]
) -> Float[Tensor, "n t d"]:
    if not can_be_launched(x):
        return formulas.modulated_norm(x, norm, shift, scale)
    return ModulatedNorm.apply(x, norm.weight, shift, scale, norm.eps)


def add_gated(
    x: Float[Tensor, "n t d"], gate: Float[Tensor, "n d"], y: Float[Tensor, "n t d"]
) -> Float[Tensor, "n t d"]:
    if not can_be_launched(x):
        return formulas.add_gated(x, gate, y)
    return AddGated.apply(x, gate, y)


def add_gated_then_norm(
    x: Float[Tensor, "n t d"], gate: Float[Tensor, "n d"], y: Float[Tensor, "n t d"], norm: nn.LayerNorm
) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n t d"]]:
    if not can_be_launched(x):
        return formulas.add_gated_then_norm(x, gate, y, norm)
    return AddGatedThenNorm.apply(x, gate, y, norm.weight, norm.eps)


def add_then_modulated_norm(
    x: Float[Tensor, "n t d"],
    y: Float[Tensor, "n t d"] | None,
    norm: nn.LayerNorm,
    shift: Float[Tensor, "n d"],
    scale: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n t d"]]:
    if not can_be_launched(x):
        return formulas.add_then_modulated_norm(x, y, norm, shift, scale)
    return AddThenModulatedNorm.apply(x, y, norm.weight, shift, scale, norm.eps)


def gated_product(x: Float[Tensor, "n t d"], gate: nn.Linear, value: nn.Linear) -> Float[Tensor, "n t f"]:
    """Both products as one."""
    if not can_be_launched(x) or gate.out_features > WIDEST_ROW:
        return formulas.gated_product(x, gate, value)
    kind = product_type(x)
    weight = torch.cat([layer.weight.to(kind) for layer in (gate, value)])
    bias = None if gate.bias is None else torch.cat([gate.bias, value.bias])
    return SiluProduct.apply(F.linear(x, weight, bias))


def sum_over_experts(
    outputs: Float[Tensor, "e n k d"], weights: Float[Tensor, "n e k"] | None, slots: Int[Tensor, "n e t"]
) -> Float[Tensor, "n t d"]:
    """Has no derivative of its own: GatherPatches and SumOverExperts are each the other's."""
    if not can_be_launched(outputs):
        return formulas.sum_over_experts(outputs, weights, slots)
    experts, n, k, width = outputs.shape
    tokens = slots.shape[-1]
    out = torch.empty(n, tokens, width, dtype=outputs.dtype, device=outputs.device)
    weights = None if weights is None else weights.contiguous()
    launch(
        "sum_over_experts_forward",
        (n * tokens,),
        *(outputs.contiguous(), weights, slots.contiguous(), out, n, experts, tokens, k, width),
        WEIGHTED=weights is not None,
        **block_of(width),
    )
    return out


def sum_over_experts_backward(
    gradient: Float[Tensor, "n t d"],
    outputs: Float[Tensor, "e n k d"],
    weights: Float[Tensor, "n e k"],
    rows: Int[Tensor, " enk"],
) -> tuple[Float[Tensor, "e n k d"], Float[Tensor, "n e k"]]:
    if not can_be_launched(gradient):
        return formulas.sum_over_experts_backward(gradient, outputs, weights, rows)
    experts, n, k, width = outputs.shape
    gradient, outputs, weights = gradient.contiguous(), outputs.contiguous(), weights.contiguous()
    of_outputs, of_weights = torch.empty_like(outputs), torch.empty_like(weights)
    launch(
        "sum_over_experts_backward",
        (experts * n * k,),
        *(gradient, outputs, weights, rows, of_outputs, of_weights, n, experts, k, width),
        **block_of(width),
    )
    return of_outputs, of_weights
