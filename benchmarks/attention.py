"""Attention with its norms alone, forward and backward: compiled for the processor against the formulas in torch.

    python benchmarks/attention.py                             # the shapes of MicroDiT_Tiny/2 in a step of 32 images

A caption's keys come from 77 tokens. MFU counts the products with queries, keys and values, those of the backward pass
once: what is computed again there is no work.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Spread, check_writable, large_product, publish, take_turns
from train_step import CAPTION_LENGTH

from microdit.kernels.cpu.host_memory import keep_freed_memory
from microdit.kernels.cpu.operations import load_fused_operations
from microdit.model.operations import FORMULAS, Operations

# (name, samples, patches, keys; none for self-attention)
SHAPES = [
    ("patch-mixer", 32, 256, None),
    ("patch-mixer, captions", 32, 256, CAPTION_LENGTH),
    ("backbone, 75 % masked", 32, 64, None),
    ("backbone, captions", 32, 64, CAPTION_LENGTH),
    ("sampling at 512 px", 2, 1024, None),
]
WIDTH, SIZES = 512, {"head_dim": 32, "norm_eps": 1e-6}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=4, help="that are timed together")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def forward_and_backward(
    operations: Operations, inputs: list[torch.Tensor], gradient: torch.Tensor, calls: int
) -> Callable[[], Any]:
    def work() -> tuple[torch.Tensor, ...]:
        for _ in range(calls):
            attended = operations.normalised_attention(*inputs, **SIZES)
            gradients = torch.autograd.grad(attended, inputs, gradient)
        return attended.detach(), *gradients

    return work


def main() -> None:
    given = arguments()
    keep_freed_memory()
    check_writable(given.json)
    device = torch.device("cpu")
    compiled = load_fused_operations()
    product = large_product(torch.float32, device, side=2048)
    rows, measured = [], []
    for name, samples, patches, keys in SHAPES:
        torch.manual_seed(0)
        if keys is None:
            inputs = [torch.randn(samples, patches, 3 * WIDTH, requires_grad=True)]
        else:
            sizes = (patches, WIDTH), (keys, 2 * WIDTH)
            inputs = [torch.randn(samples, *size, requires_grad=True) for size in sizes]
        gradient = torch.randn(samples, patches, WIDTH)
        work = {
            what: forward_and_backward(operations, inputs, gradient, given.calls)
            for what, operations in (("compiled", compiled), ("formulas", FORMULAS))
        }
        difference = max(
            (x - y).abs().max().item() for x, y in zip(work["compiled"](), work["formulas"](), strict=True)
        )
        seconds, rates = take_turns(work, given.rounds, device, product)
        flops = 3 * 4 * samples * patches * (keys or patches) * WIDTH * given.calls  # forward, and twice that backward
        mfu = Spread.of([flops / own / rate for own, rate in zip(seconds["compiled"], rates["compiled"], strict=True)])
        ratio = Spread.of([own / other for own, other in zip(seconds["compiled"], seconds["formulas"], strict=True)])
        own, formulas = (Spread.of(seconds[what]) for what in work)
        rows.append(
            {
                "where": name,
                "samples x patches x keys": f"{samples} x {patches} x {keys or patches}",
                "compiled, ms": own.show(scale=1e3 / given.calls),
                "formulas, ms": formulas.show(scale=1e3 / given.calls),
                "compiled over formulas": ratio.show(),
                "compiled's MFU, %": mfu.show(scale=100),
                "difference": f"{difference:.1e}",
            }
        )
        measured.append({"where": name, "compiled": own, "formulas": formulas, "ratio": ratio, "calls": given.calls})
    publish(f"attention with its norms, width {WIDTH}, fp32", rows, {"measured": measured}, given.json)


if __name__ == "__main__":
    main()
