"""One expert layer, forward and backward: patches gathered for the experts against one-hot products.

python benchmarks/moe.py                                   # CPU, layers of MicroDiT_Tiny/2 and MicroDiT_XL/2
python benchmarks/moe.py --device cuda --batch 64 --precision bf16
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measuring import Spread, check_writable, large_product, publish, supported, take_turns
from memory import peak_bytes
from one_hot import with_one_hot_experts
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from train_step import PRECISIONS, autocast

from microdit.kernels.cpu.host_memory import keep_freed_memory
from microdit.model.feed_forward import ExpertChoice

# (name, width, feed-forward ratio, patches present): the last expert layers of the backbones and of a mixer
LAYERS = [
    ("Tiny backbone, 256 px, 75 % masked", 512, 3.8, 64),
    ("Tiny mixer, 256 px", 512, 4.0, 256),
    ("XL backbone, 512 px, 75 % masked", 1024, 3.8, 256),
    ("XL mixer, 512 px", 768, 4.0, 1024),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def forward_and_backward(layer: nn.Module, x: torch.Tensor, precision: str) -> Callable[[], None]:
    def work() -> None:
        with autocast(precision, x.device):
            output = layer(x)
        output.float().square().mean().backward()
        layer.zero_grad(set_to_none=True)
        x.grad = None

    return work


def megabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.0f}"


def main() -> None:
    given = arguments()
    keep_freed_memory()
    check_writable(given.json)
    device = torch.device(given.device)
    given.precision = supported(given.precision, PRECISIONS, device)
    rows, measured = [], []
    for name, width, ratio, patches in LAYERS:
        torch.manual_seed(0)
        gathering = ExpertChoice(width, ratio, 256, num_experts=8, capacity=2.0).to(device)
        for weight in gathering.parameters():
            nn.init.trunc_normal_(weight, std=0.02)
        one_hot = with_one_hot_experts(copy.deepcopy(gathering))
        x = torch.randn(given.batch, patches, width, device=device, requires_grad=True)
        difference = (gathering(x) - one_hot(x)).abs().max().item()
        for precision in given.precision:
            work = {"gather": gathering, "one-hot": one_hot}
            candidates: dict[str, Callable[[], Any]] = {
                what: forward_and_backward(layer, x, precision) for what, layer in work.items()
            }
            product = large_product(PRECISIONS[precision], device)
            peaks = {what: peak_bytes(candidate, device) for what, candidate in candidates.items()}
            seconds, rates = take_turns(candidates, given.rounds, device, product)
            with FlopCounterMode(display=False) as counter:
                candidates["gather"]()
            mfu = [
                counter.get_total_flops() / own / rate
                for own, rate in zip(seconds["gather"], rates["gather"], strict=True)
            ]
            ratios = Spread.of([b / a for a, b in zip(seconds["gather"], seconds["one-hot"], strict=True)])
            gather, plain = Spread.of(seconds["gather"]), Spread.of(seconds["one-hot"])
            rows.append(
                {
                    "layer": f"{name}, {precision}",
                    "width x patches": f"{width} x {patches}",
                    "gather, ms": gather.show(scale=1e3),
                    "one-hot, ms": plain.show(scale=1e3),
                    "speed-up": ratios.show(),
                    "gather's MFU, %": Spread.of(mfu).show(scale=100),
                    "peak MB, gather and one-hot": " and ".join(megabytes(peaks[what]) for what in work),
                    "difference, fp32": f"{difference:.1e}",
                }
            )
            measured.append(
                {"layer": name, "precision": precision, "gather": gather, "one_hot": plain, "peak_bytes": peaks}
            )
    publish(f"expert layer, {given.batch} images", rows, {"measured": measured}, given.json)


if __name__ == "__main__":
    main()
