"""How near a training step comes to what this machine can compute, against one-hot experts with plain AdamW.

A step is forward, backward, clipping and AdamW on random latents and 77 x 1024 captions. Model FLOPs are torch's count
on the real network, experts by gathering (dispatch is no work); MFU is model FLOPs a second over this machine's own
rate for one large matrix product in the same precision, measured before and after each step.

    python benchmarks/train_step.py --compile                              # MicroDiT_Tiny/2 as the paper ablates it
    python benchmarks/train_step.py --network xl --device cuda --precision bf16 --compile --batch 0 --stages
    python benchmarks/train_step.py --network xl --batch 1 --ratios 0.75 --precision fp32 --rounds 1 --baseline none
    python benchmarks/train_step.py --batch 8 --ratios 0.75 --precision fp32 --activation-checkpointing

Peak memory is that of one step and one candidate: weights, gradients, AdamW's moments and activations.
--batch 0 finds the largest power of two that fits the accelerator, and leaves the baseline out. --stages projects the
paper's four stages on eight such cards; it needs XL at 256 and 512 px, at both mask ratios, and measures what is
missing of them. --json is written after every case, so that one that fails leaves the others.
"""

import argparse
import copy
import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import Spread, check_writable, large_product, publish, supported, take_turns
from memory import bytes_of, gigabytes, peak_bytes
from one_hot import with_one_hot_experts
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from microdit.cost.flops import training_flops_per_image
from microdit.kernels.compile import compile_network
from microdit.kernels.cpu.host_memory import keep_freed_memory
from microdit.kernels.gpu.graphs import GraphedGradients
from microdit.model.dit import DiT
from microdit.model.sizes import MicroDiT_Tiny_2, MicroDiT_XL_2
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws, training_loss
from microdit.training.optimizers import clip_in_step, clips_by_itself

CAPTION_LENGTH, LARGEST_NORM = 77, 0.25
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
NETWORKS: dict[str, Callable[..., DiT]] = {
    "tiny": MicroDiT_Tiny_2,
    "xl": MicroDiT_XL_2,
    # for trying this script
    "small": lambda **inputs: MicroDiT_Tiny_2(
        **inputs, dim=128, depth=4, head_dim=32, multiple_of=32, patch_mixer_depth=2, patch_mixer_dim=64
    ),
}
# The paper's stages (PAPER table): pixels, mask ratio, steps of 2048 images.
STAGES = [(256, 0.75, 250_000), (256, 0.0, 30_000), (512, 0.75, 50_000), (512, 0.0, 5_000)]
STAGE_BATCH, CARDS, DOLLARS_AN_HOUR = 2048, 8, 3.78


class Case(NamedTuple):
    """One row of the table."""

    pixels: int
    mask_ratio: float
    precision: str


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="tiny")
    parser.add_argument("--batch", type=int, default=32, help="images a step; 0: the largest power of two that fits")
    parser.add_argument("--pixels", type=int, nargs="+", default=[256])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.0])
    parser.add_argument("--precision", choices=PRECISIONS, nargs="+", default=["fp32", "bf16"])
    parser.add_argument(
        "--baseline",
        choices=["one_hot", "not_compiled", "none"],
        nargs="+",
        default=["one_hot"],
        help="what takes turns with microdit at 0.75; not_compiled: beside --compile",
    )
    parser.add_argument("--activation-checkpointing", action="store_true", help="also a row with it, and its price")
    parser.add_argument("--compile", action="store_true", help="as trainer.compile=true does")
    parser.add_argument("--stages", action="store_true", help="project the paper's four stages from the rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[precision])


def training_step(
    network: DiT, case: Case, batch: int, device: torch.device, *, fused: bool = True, graphed: bool = False
) -> Callable[[], None]:
    """One full step on random data, ready to be repeated; `graphed` as training is launched on one GPU."""
    side = case.pixels // 8
    patches = (side // network.patch_size) ** 2
    latents = torch.randn(batch, network.in_channels, side, side, device=device)
    captions = torch.randn(batch, CAPTION_LENGTH, network.caption_channels, device=device)
    draws = Draws(
        torch.randn(batch, 1, 1, 1, device=device),
        torch.randn_like(latents),
        torch.rand(batch, patches, device=device),
    )
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1, fused=fused or None)
    make_moments(optimizer)

    def loss_of(given: tuple[Tensor, Tensor, Draws], mask_ratio: float) -> tuple[Tensor, Tensor]:
        terms = training_loss(
            network,
            *given,
            token_path=network.token_path,
            objective=EDM(0.9, -0.6, 1.2),
            mask_ratio=mask_ratio,
            patch_size=network.patch_size,
        )
        return terms.loss, terms.loss.detach()

    recorded = GraphedGradients(network, loss_of)

    def differentiate() -> None:
        if graphed:
            with autocast(case.precision, device):
                recorded((latents, captions, draws), case.mask_ratio)
            for parameter, gradient in zip(parameters, recorded.gradients, strict=True):
                parameter.grad = gradient
            return
        with autocast(case.precision, device):
            loss, _ = loss_of((latents, captions, draws), case.mask_ratio)
        loss.backward()

    def step() -> None:
        differentiate()
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None], foreach=fused or None)
        if clips_by_itself(optimizer):
            clip_in_step(optimizer, norm, LARGEST_NORM)
        else:
            clip_grads_with_norm_(parameters, LARGEST_NORM, norm, foreach=fused or None)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """AdamW's state, made without a step, so that the first step takes the memory that all steps take."""
    (group,) = optimizer.param_groups
    learning_rate = group["lr"]
    group["lr"] = 0.0
    for parameter in group["params"]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    group["lr"] = learning_rate


def build(arguments: argparse.Namespace, pixels: int, device: torch.device) -> DiT:
    torch.manual_seed(0)
    with device:
        return NETWORKS[arguments.network](input_size=pixels // 8, pos_interp_scale=pixels / 256).train()


def largest_batch(arguments: argparse.Namespace, case: Case, device: torch.device) -> int:
    """The largest power of two whose step fits the accelerator's memory."""
    network, batch = build(arguments, case.pixels, device), 1
    try:
        while True:
            training_step(network, case, 2 * batch, device)()
            batch *= 2
            torch.cuda.empty_cache()
    except torch.cuda.OutOfMemoryError:
        return batch
    finally:
        del network
        gc.collect()
        torch.cuda.empty_cache()


def measure(arguments: argparse.Namespace, case: Case, device: torch.device) -> list[dict[str, Any]]:
    """Ours, the baseline and the options asked for, in turns with the matrix product that they are measured against."""
    if device.type == "cuda":  # as training does
        torch.set_float32_matmul_precision("high" if case.precision == "bf16" else "highest")
    batch = arguments.batch or largest_batch(arguments, case, device)
    network = build(arguments, case.pixels, device)
    flops = training_flops_per_image(network, case.mask_ratio, CAPTION_LENGTH) * batch
    product = large_product(PRECISIONS[case.precision], device)
    candidates: dict[str, Callable[[], Any]] = {}
    # Weights and moments are there before the step whose peak is measured.
    kept = 3 * bytes_of(network.parameters())
    baselines = arguments.baseline if arguments.batch and case.mask_ratio == 0.75 else []
    if "one_hot" in baselines:
        plain = with_one_hot_experts(copy.deepcopy(network))
        candidates["one-hot, plain AdamW"] = training_step(plain, case, batch, device, fused=False)
    if arguments.activation_checkpointing:
        saving = copy.deepcopy(network)
        saving.checkpoint_activations()
        if arguments.compile:
            compile_network(saving, device.type)
        candidates["microdit, recomputing"] = training_step(saving, case, batch, device)
    if "not_compiled" in baselines:
        candidates["microdit, not compiled"] = training_step(copy.deepcopy(network), case, batch, device)
    if arguments.compile:
        compile_network(network, device.type)
    candidates["microdit"] = training_step(
        network, case, batch, device, graphed=arguments.compile and device.type == "cuda"
    )
    peaks = {}
    for name, step in candidates.items():
        if arguments.compile and device.type != "cpu":
            step()  # blocks are compiled when they are first called, which takes memory of its own
        peak = peak_bytes(step, device)
        peaks[name] = None if peak is None else peak + kept
    seconds, rates = take_turns(candidates, arguments.rounds, device, product, warmups=0)
    rows = []
    for name in seconds:
        mfu = [flops / s / rate for s, rate in zip(seconds[name], rates[name], strict=True)]
        speedup = [ours / s for s, ours in zip(seconds[name], seconds["microdit"], strict=True)]
        rows.append(
            {
                "case": case._asdict(),
                "what": name,
                "batch": batch,
                "seconds": Spread.of(seconds[name]),
                "mfu": Spread.of(mfu),
                "time_of_microdit_over_this": Spread.of(speedup),
                "product_flops_per_second": Spread.of(rates[name]),
                "model_flops_per_step": flops,
                "peak_bytes": peaks[name],
            }
        )
    return rows


def shown(row: dict[str, Any]) -> dict[str, str]:
    case = Case(**row["case"])
    return {
        "what": row["what"],
        "case": f"{case.pixels} px, {case.mask_ratio:.0%} masked, {case.precision}, batch {row['batch']}",
        "s a step": row["seconds"].show(),
        "images/s": f"{row['batch'] / row['seconds'].median:.3g}",
        "GEMM TFLOP/s": f"{row['product_flops_per_second'].median * 1e-12:.3g}",
        "MFU, %": row["mfu"].show(scale=100),
        "peak GB": gigabytes(row["peak_bytes"]),
        "microdit's time over this": f"{row['time_of_microdit_over_this'].median:.2f}",
    }


def project_stages(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Days and dollars of the paper's four stages on CARDS of this device, from the measured rates alone."""
    rate = {Case(**r["case"])[:2]: r["batch"] / r["seconds"].median for r in rows if r["what"] == "microdit"}
    hours = sum(steps * STAGE_BATCH / (CARDS * rate[pixels, ratio]) / 3600 for pixels, ratio, steps in STAGES)
    return {"days": hours / 24, "dollars": hours * CARDS * DOLLARS_AN_HOUR}


def main() -> None:
    given = arguments()
    keep_freed_memory()
    check_writable(given.json)
    device = torch.device(given.device)
    if given.batch == 0 and device.type != "cuda":
        raise SystemExit("--batch 0 searches an accelerator's memory: give --device cuda, or a batch")
    if "not_compiled" in given.baseline and not given.compile:
        raise SystemExit("--baseline not_compiled is microdit itself: give --compile as well")
    if given.stages:
        given.pixels, given.ratios = [256, 512], [0.75, 0.0]
    given.precision = supported(given.precision, PRECISIONS, device)
    rows: list[dict[str, Any]] = []
    cases = [
        Case(pixels, ratio, precision)
        for pixels in given.pixels
        for precision in given.precision
        for ratio in given.ratios
    ]
    for case in cases:
        if rows:
            publish(f"training step, {given.network}, so far", [shown(row) for row in rows], {}, given.json)
        rows += measure(given, case, device)
        gc.collect()
    record: dict[str, Any] = {"measured": rows}
    if given.stages:
        projection = project_stages([r for r in rows if r["case"]["precision"] == given.precision[-1]])
        record["four_stages"] = projection
        print(
            f"the paper's four stages on {CARDS} of this device, scaling perfectly, without reading and saving: "
            f"{projection['days']:.2f} days, ${projection['dollars']:,.0f} at ${DOLLARS_AN_HOUR} an hour each"
        )
    publish(f"training step, {given.network}", [shown(row) for row in rows], record, given.json)


if __name__ == "__main__":
    main()
