"""The operations of a block compiled for a CPU: the formulas of model/operations.py, each in one pass over memory.

`fused_attention.cpp` and `fused_layers.cpp` are compiled on this computer the first time they are asked for. That takes
a C++ compiler and half a minute; later processes find what was made. They are operations of torch.library with shapes
and derivatives, so that compilers and fake tensors go through them as through torch's own.
"""

import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from microdit.model.operations import (
    Operations,
    add_gated,
    as_factor,
    modulated_norm,
    normalised_attention,
    plain_norm,
    silu_product,
    sum_over_experts,
    sum_over_experts_backward,
    unpack,
)

PYTORCH = Path(torch.__file__).parent
FOLDER = Path(__file__).parent
SOURCES, HEADERS = sorted(FOLDER.glob("*.cpp")), sorted(FOLDER.glob("*.h"))
# What at::vec is compiled for, as PyTorch found it in this processor. Nothing beyond: a home may be shared with others.
INSTRUCTIONS: dict[str, list[str]] = {
    "DEFAULT": [],
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"],
}


class CompilerError(RuntimeError):
    """What is to be compiled cannot be; the message says why, and how to do without."""


WAYS_OUT = (
    "Install a C++ compiler that knows OpenMP, such as g++ (CXX=... names another one, TORCH_EXTENSIONS_DIR=... "
    "another folder), or do without: compile=false, trainer.compile=false in training"
)


@functools.cache
def load_fused_operations() -> Operations:
    """The fused operations, compiled for this processor and this PyTorch unless that was done before.

    What is compiled is kept in $TORCH_EXTENSIONS_DIR or in the user's cache.
    Raises CompilerError where there is no C++ compiler, where it fails, or where its result cannot be kept.
    """
    command = compiler_command()
    name = library_name(command)
    try:
        library = library_folder() / name
        if not library.exists():
            library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
                made = Path(scratch) / name
                subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, text=True)
                made.chmod(0o700)
                made.replace(library)  # at once, because other processes may be looking for it, or making it too
        refuse_others(library)
        torch.ops.load_library(library)
        register_shapes_and_derivatives()
    except subprocess.CalledProcessError as error:
        raise CompilerError(f"{command[0]} cannot compile {FOLDER}: {error.stderr}\n{WAYS_OUT}") from error
    except (OSError, RuntimeError) as error:  # RuntimeError: a user without a home
        raise CompilerError(f"the operations cannot be compiled, kept or loaded: {error}\n{WAYS_OUT}") from error
    return Operations(
        fused_normalised_attention,
        fused_modulated_norm,
        fused_add_gated,
        fused_add_gated_then_norm,
        fused_add_then_modulated_norm,
        fused_gated_product,
        sum_over_experts,
        sum_over_experts_backward,
    )


def refuse_others(library: Path) -> None:
    """Raises CompilerError where somebody else could have put there what is about to be run."""
    for path in (library.parent, library):
        found = path.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise CompilerError(
                f"{path} belongs to somebody else, or others may write there, so what lies there is not run: "
                f"chmod go-w {path}, or TORCH_EXTENSIONS_DIR=... for a folder of your own"
            )


def library_name(command: list[str]) -> str:
    """Another one for whatever changes what is made; the same wherever PyTorch and the sources lie, in every clone."""
    flags = [flag for flag in command if str(PYTORCH) not in flag and str(FOLDER) not in flag]
    made_of = [torch.__version__, platform.machine(), *flags, *(path.read_text() for path in SOURCES + HEADERS)]
    return f"microdit_{hashlib.sha256(chr(10).join(made_of).encode()).hexdigest()[:16]}.so"


def library_folder() -> Path:
    if chosen := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "microdit"


def compiler_command() -> list[str]:
    """Compiles SOURCES into a library, once `-o` and its path are added."""
    instructions = torch.backends.cpu.get_cpu_capability()
    if instructions not in INSTRUCTIONS:
        instructions = "DEFAULT"
    return [
        *shlex.split(os.environ.get("CXX") or "c++"),
        *("-std=c++20", "-O3", "-fopenmp", "-fPIC", "-shared", *map(str, SOURCES)),
        *INSTRUCTIONS[instructions],
        *(f"-DCPU_CAPABILITY={instructions}", f"-DCPU_CAPABILITY_{instructions}"),
        *(f"-I{PYTORCH / 'include'}", f"-L{PYTORCH / 'lib'}", "-ltorch_cpu", "-lc10"),
    ]


def can_be_fused(*tensors: Tensor) -> bool:
    """Whether the compiled functions take them: float32 on a CPU. All else goes through the formulas."""
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)


@torch.library.custom_op("microdit::packed_attention", mutates_args=(), device_types="cpu")
def packed_attention(packed: Sequence[Tensor], head_dim: int, norm_eps: float) -> Tensor:
    """Normalised attention of what `unpack` takes."""
    return torch.ops.microdit.attention(*unpack(*packed), head_dim, norm_eps)


@torch.library.custom_op("microdit::packed_attention_backward", mutates_args=(), device_types="cpu")
def packed_attention_backward(
    gradient: Tensor, packed: Sequence[Tensor], head_dim: int, norm_eps: float
) -> list[Tensor]:
    """The gradients lie packed as their inputs did, so that nothing has to be put together again."""
    gradients = [torch.empty_like(x) for x in packed]
    torch.ops.microdit.attention_backward(gradient, *unpack(*packed), *unpack(*gradients), head_dim, norm_eps)
    return gradients


def register_shapes_and_derivatives() -> None:
    """Tells torch.library what the compiled operations give, without computing it, and how they are differentiated.

    Each keeps its inputs for the backward pass, and nothing else.
    """
    fake, autograd = torch.library.register_fake, torch.library.register_autograd
    fake("microdit::packed_attention", lambda packed, *sizes: torch.empty_like(unpack(*packed)[0].contiguous()))
    fake("microdit::packed_attention_backward", lambda gradient, packed, *sizes: [torch.empty_like(x) for x in packed])

    def keep_packed(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        packed, *ctx.sizes = inputs
        ctx.save_for_backward(*packed)

    def attention_backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        packed = list(ctx.saved_tensors)
        return torch.ops.microdit.packed_attention_backward(gradient.contiguous(), packed, *ctx.sizes), None, None

    autograd("microdit::packed_attention", attention_backward, setup_context=keep_packed)
    register_layer("modulated_norm", kept=(0, 1), computed=(0, 1, 1), numbers=1)
    register_layer("add_gated", kept=(1, 2), computed=(0, 1), numbers=0)
    register_layer("silu_product", kept=(0, 1), computed=(0, 1), numbers=0)


def register_layer(name: str, kept: Sequence[int], computed: Sequence[int], numbers: int) -> None:
    """An operation whose result is like its first input, and whose backward operation takes the gradient, the inputs
    `kept` and the `numbers` that stand last; what that gives is like the kept ones at the places `computed`. An input
    before them has the gradient itself (x in x + gate * y)."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.numbers = inputs[len(inputs) - numbers :]
        ctx.save_for_backward(*(inputs[i] for i in kept))

    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        differentiate = getattr(torch.ops.microdit, f"{name}_backward")
        gradients = differentiate(gradient.contiguous(), *ctx.saved_tensors, *ctx.numbers)
        return (*[gradient] * min(kept), *gradients, *[None] * numbers)

    torch.library.register_fake(f"microdit::{name}", lambda x, *others: torch.empty_like(x))
    torch.library.register_fake(
        f"microdit::{name}_backward", lambda gradient, *inputs: tuple(torch.empty_like(inputs[i]) for i in computed)
    )
    torch.library.register_autograd(f"microdit::{name}", backward, setup_context=keep)


def fused_normalised_attention(
    *packed: Float[Tensor, "n _ _"], head_dim: int, norm_eps: float, present: Bool[Tensor, "n l"] | None = None
) -> Float[Tensor, "n t h"]:
    if present is not None or not can_be_fused(*packed):  # what is compiled attends to all keys
        return normalised_attention(*packed, head_dim=head_dim, norm_eps=norm_eps, present=present)
    return torch.ops.microdit.packed_attention([x.contiguous() for x in packed], head_dim, norm_eps)


def fused_modulated_norm(
    x: Float[Tensor, "n t d"], norm: nn.LayerNorm, shift: Float[Tensor, "n d"], scale: Float[Tensor, "n d"]
) -> Float[Tensor, "n t d"]:
    if not can_be_fused(x, shift, scale):
        return modulated_norm(x, norm, shift, scale)
    # `norm` itself is not called: with FSDP in bfloat16, which shards norms by themselves, shift is no float32 either.
    factor = norm.weight * (1 + scale)
    return as_factor(torch.ops.microdit.modulated_norm(x.contiguous(), factor, shift.contiguous(), norm.eps))


def fused_add_gated(
    x: Float[Tensor, "n t d"], gate: Float[Tensor, "n d"], y: Float[Tensor, "n t d"]
) -> Float[Tensor, "n t d"]:
    if not can_be_fused(x, gate, y):
        return add_gated(x, gate, y)
    return torch.ops.microdit.add_gated(x.contiguous(), gate.contiguous(), y.contiguous())


def fused_add_gated_then_norm(
    x: Float[Tensor, "n t d"], gate: Float[Tensor, "n d"], y: Float[Tensor, "n t d"], norm: nn.LayerNorm
) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n t d"]]:
    x = fused_add_gated(x, gate, y)
    return x, plain_norm(x, norm)


def fused_add_then_modulated_norm(
    x: Float[Tensor, "n t d"],
    y: Float[Tensor, "n t d"] | None,
    norm: nn.LayerNorm,
    shift: Float[Tensor, "n d"],
    scale: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "n t d"], Float[Tensor, "n t d"]]:
    x = x if y is None else x + y
    return x, fused_modulated_norm(x, norm, shift, scale)


def fused_silu_product(x: Float[Tensor, "n t f"], y: Float[Tensor, "n t f"]) -> Float[Tensor, "n t f"]:
    if not can_be_fused(x, y):
        return silu_product(x, y)
    return torch.ops.microdit.silu_product(x.contiguous(), y.contiguous())


def fused_gated_product(x: Float[Tensor, "n t d"], gate: nn.Linear, value: nn.Linear) -> Float[Tensor, "n t f"]:
    return fused_silu_product(gate(x), value(x))
