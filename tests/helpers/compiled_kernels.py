"""Compiles every kernel for a GPU that need not be there, as Triton does before it launches one; prints what it takes.

`python compiled_kernels.py 90`: for compute capability 9.0 (H100). A line a kernel: name, registers, bytes of shared
memory. Not under TRITON_INTERPRET, which makes kernels what no compiler takes.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from microdit.kernels.gpu import kernels, operations

CUOBJDUMP = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
HALF, FULL, INDEX = "*bf16", "*fp32", "*i64"
FULL_NAMES = {
    *("mean", "q_mean", "k_mean"),
    *("rstd", "q_rstd", "k_rstd"),
    "logsumexp",
    "sums",
    "weight",
    "weights",
    *("of_weight", "of_weights", "of_scale", "of_other"),
    "gate",
    "shift",
    "scale",
    "of_gate",
}
ROW = {"BLOCK": 1024}
KERNELS = {
    "norm_forward": [
        {**ROW, "ADDS": False, "GATED": False, "MODULATED": True},
        {**ROW, "ADDS": True, "GATED": True, "MODULATED": False},
        {**ROW, "ADDS": True, "GATED": False, "MODULATED": True},
    ],
    "norm_backward": [
        {**ROW, "ADDS": False, "GATED": False, "MODULATED": True, "PART": operations.PART},
        {**ROW, "ADDS": True, "GATED": True, "MODULATED": False, "PART": operations.PART},
        {**ROW, "ADDS": True, "GATED": False, "MODULATED": True, "PART": operations.PART},
    ],
    "norm_backward_of_rows": [{**ROW, "MODULATED": True}, {**ROW, "MODULATED": False}],
    "add_gated_forward": [ROW],
    "add_gated_backward": [{**ROW, "PART": operations.PART}],
    "silu_product_forward": [ROW],
    "silu_product_backward": [ROW],
    "normalise_forward": [{**ROW, "WRITES": True}, {**ROW, "WRITES": False}],
    "normalise_backward": [{**ROW, "NORMALISED": 1}, {**ROW, "NORMALISED": 2}],
    "sum_over_experts_forward": [{**ROW, "WEIGHTED": True}, {**ROW, "WEIGHTED": False}],
    "sum_over_experts_backward": [ROW],
    "attention_forward": [{**operations.FORWARD, "HEAD": 64, "KEYS": keys} for keys in (64, 128)],
    "attention_backward_few_queries": [{**operations.FEW_QUERIES, "HEAD": 64}],
    "attention_backward_few_keys": [{**operations.FEW_KEYS, "HEAD": 64}],
}


def absent(name: str, held: dict[str, int]) -> set[str]:
    """Arguments that are None where the kernel has no use for them."""
    missing = set()
    if held.get("ADDS") is False:
        missing |= {"y", "of_total"}
    if held.get("GATED") is False:
        missing |= {"gate", "of_y"} | ({"y"} if name == "norm_backward" else set())
    if held.get("MODULATED") is False:
        missing |= {"shift", "scale", "of_scale"}
    if held.get("WEIGHTED") is False:
        missing |= {"weights"}
    if held.get("WRITES") is False:
        missing |= {"out"}
    return missing


def kind_of(name: str, argument: str) -> str:
    attention = name.startswith("attention")
    if argument == "eps" or (attention and argument == "scale"):
        return "fp32"
    if argument == "slots" or (name == "sum_over_experts_backward" and argument == "rows"):
        return INDEX
    sizes = {"tokens", "width", "rows", "parts", "samples", "experts", "count", "heads", "queries", "keys"}
    if argument in sizes or argument.endswith(("_stride", "_sample", "_row")) or (argument == "k" and not attention):
        return "i32"
    return FULL if argument in FULL_NAMES else HALF


def compiled(name: str, held: dict[str, int], capability: int) -> tuple[int, int]:
    """Registers of a thread and bytes of shared memory."""
    function = getattr(kernels, name)
    options = {key: held[key] for key in ("num_warps", "num_stages") if key in held} or {"num_warps": 4}
    constants = {key: value for key, value in held.items() if key not in options}
    constants |= {argument: None for argument in absent(name, held) if argument in function.arg_names}
    signature = {
        argument: "constexpr" if argument in constants else kind_of(name, argument) for argument in function.arg_names
    }
    source = ASTSource(fn=function, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(made.asm["cubin"])
        said = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+)", said)
    assert found, said
    return int(found.group(1)), made.metadata.shared


if __name__ == "__main__":
    for name, cases in KERNELS.items():
        for held in cases:
            print(name, *compiled(name, held, int(sys.argv[1])), flush=True)
