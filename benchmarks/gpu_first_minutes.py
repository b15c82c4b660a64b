"""What a GPU does with the paper's network, in minutes: the first thing to run on a kind of card that is new.

    python -m pytest -q tests/gpu
    python benchmarks/gpu_first_minutes.py --out first_minutes

The most valuable comes first, every part has a limit of its own, what is known is written after each, and a part that
fails leaves the others: DIR/first_minutes.json has the numbers, DIR/table.txt one table of them, DIR/profile.txt where
the time of a step goes. A step is forward, backward, clipping and AdamW on random data; MFU is model FLOPs a second
over the card's own rate for one large product in bfloat16. Without a GPU: --device cpu --network small --batch 2.
"""

import argparse
import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from measuring import Spread, large_product, machine, seconds_of, synchronise
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from train_step import CAPTION_LENGTH, NETWORKS, STAGE_BATCH, STAGES, Case, autocast, build, training_step

from microdit.cost.flops import training_flops_per_image
from microdit.cost.memory import training_memory
from microdit.kernels.compile import compile_network
from microdit.model.operations import FORMULAS, use_operations
from microdit.objectives.edm import EDM
from microdit.sampling.guidance import guided_denoiser
from microdit.sampling.samplers import SAMPLERS, noise_schedule

CARDS, PRICES = 8, (3.78, 2.00)  # dollars an hour of a card: the paper's, and what is common by now
KERNELS_SHOWN = 25
GUIDANCE_SCALE, GUIDED = 5.0, (1.0, 80.0)
# Pixels, mask ratio and how many images at once, as a share of --batch: the paper's four stages.
CASES = [(256, 0.75, 1.0), (256, 0.0, 0.5), (512, 0.75, 0.25), (512, 0.0, 0.125)]
WAYS = {  # to launch a step: what is compiled, and whether as one CUDA graph
    "as training does": (True, True),
    "compiled, kernel by kernel": (True, False),
    "formulas": (False, False),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for what is measured")
    parser.add_argument("--network", choices=NETWORKS, default="xl")
    parser.add_argument("--batch", type=int, default=256, help="images at once at 256 px and 75 %%; fewer elsewhere")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=10)
    return parser.parse_args()


class Minutes:
    """What has been measured so far, and what the next part needs of it."""

    def __init__(self, given: argparse.Namespace):
        self.given, self.device = given, torch.device(given.device)
        self.on_gpu = self.device.type == "cuda"
        self.record: dict[str, Any] = {"machine": machine(), "steps": [], "failed": {}}
        self.network, self.pixels = None, 0
        given.out.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        (self.given.out / "first_minutes.json").write_text(json.dumps(self.record, indent=1) + "\n")
        with (self.given.out / "table.txt").open("w") as file:
            Console(file=file, width=150).print(table(self.record))

    def network_of(self, pixels: int) -> Any:
        """The network for pictures of this size; that for another size is given up."""
        if self.pixels != pixels:
            self.network = None
            self.free()
            self.network, self.pixels = build(self.given, pixels, self.device), pixels
        return self.network

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def measure_product(minutes: Minutes) -> None:
    """The rate of one large product, which MFU is a share of."""
    multiply, flops = large_product(torch.bfloat16, minutes.device, None if minutes.on_gpu else 512)
    seconds_of(multiply, minutes.device)
    rates = [flops / seconds_of(multiply, minutes.device) for _ in range(5)]
    minutes.record["product_flops_per_second"] = max(rates)


def measure_step(minutes: Minutes, pixels: int, mask_ratio: float, share: float, way: str) -> None:
    """Seconds and memory of a step, and how long the first one took, in which all is compiled and recorded."""
    compiles, graphed = WAYS[way]
    batch = max(1, int(minutes.given.batch * share))
    network = minutes.network_of(pixels)
    minutes.free()
    if compiles and minutes.on_gpu:
        compile_network(network, "cuda")
    else:
        use_operations(network, FORMULAS)
    case = Case(pixels, mask_ratio, "bf16")
    flops = training_flops_per_image(network, mask_ratio, CAPTION_LENGTH) * batch
    step = training_step(network, case, batch, minutes.device, graphed=graphed and minutes.on_gpu)
    first = seconds_of(step, minutes.device)
    step()
    seconds = [seconds_of(step, minutes.device) for _ in range(minutes.given.repeats)]
    began = time.perf_counter()
    for _ in range(minutes.given.repeats):
        step()
    synchronise(minutes.device)
    together = (time.perf_counter() - began) / minutes.given.repeats
    counted = training_memory(
        network,
        parts=1,
        bf16=True,
        ema=False,
        compiled=compiles and minutes.on_gpu,
        images=batch,
        micro_batches=1,
        mask_ratio=mask_ratio,
        caption_length=CAPTION_LENGTH,
    )
    minutes.record["steps"].append(
        {
            "case": case._asdict(),
            "way": way,
            "batch": batch,
            "first_seconds": first,
            "seconds": together,
            "seconds_one_by_one": Spread.of(seconds),
            "images_per_second": batch / together,
            "model_flops": flops,
            "mfu": flops / together / minutes.record["product_flops_per_second"],
            "peak_bytes": torch.cuda.max_memory_allocated() if minutes.on_gpu else None,
            "counted_bytes": counted.total,
        }
    )


def profile_step(minutes: Minutes) -> None:
    """The kernels that take most of a step's time."""
    network = minutes.network_of(256)
    minutes.free()
    if minutes.on_gpu:
        compile_network(network, "cuda")
    step = training_step(network, Case(256, 0.75, "bf16"), minutes.given.batch, minutes.device, graphed=minutes.on_gpu)
    step()
    step()
    activities = [ProfilerActivity.CUDA] if minutes.on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        step()
        synchronise(minutes.device)
    order = "self_cuda_time_total" if minutes.on_gpu else "self_cpu_time_total"
    shown = profiled.key_averages().table(sort_by=order, row_limit=KERNELS_SHOWN, max_name_column_width=80)
    (minutes.given.out / "profile.txt").write_text(shown)


def project_stages(minutes: Minutes) -> None:
    """The paper's four stages on CARDS such cards, by the rates of a step alone: GPU-hours, and dollars."""
    steps = {
        (step["case"]["pixels"], step["case"]["mask_ratio"]): step["images_per_second"]
        for step in minutes.record["steps"]
        if step["way"] == "as training does"
    }
    hours = {
        f"{pixels} px, {ratio:.0%} masked": count * STAGE_BATCH / steps[pixels, ratio] / 3600
        for pixels, ratio, count in STAGES
    }
    total = sum(hours.values())
    minutes.record["stages"] = {
        "gpu_hours": hours,
        "gpu_hours_in_all": total,
        "days_on_8": total / CARDS / 24,
        "dollars": {str(price): total * price for price in PRICES},
    }


@torch.no_grad()
def measure_sampling(minutes: Minutes) -> None:
    """Pictures a second at 512 px: 30 steps of Heun, 20 of DPM-Solver++(2M), the same guided in an interval."""
    network = minutes.network_of(512 if minutes.on_gpu else 256)
    minutes.free()
    if minutes.on_gpu:
        compile_network(network, "cuda")
    network.eval()
    side, count = network.input_size, max(1, minutes.given.batch // 16)
    noise = torch.randn(count, network.in_channels, side, side, device=minutes.device)
    captions = torch.randn(count, CAPTION_LENGTH, network.caption_channels, device=minutes.device)
    found = minutes.record["pictures_per_second"] = {}

    def draw(sampler: str, steps: int, interval: tuple[float, float] | None) -> None:
        with autocast("bf16", minutes.device):
            memory = network.read_captions(captions)
            denoiser = guided_denoiser(network, memory, EDM(0.9), GUIDANCE_SCALE, interval)
            list(SAMPLERS[sampler].states(denoiser, noise, noise_schedule(steps)))

    draw("dpm_solver_2m", 2, None)
    for name, how in {
        "DPM-Solver++(2M), 20 steps": ("dpm_solver_2m", 20, None),
        "DPM-Solver++(2M), 20 steps, guided in an interval": ("dpm_solver_2m", 20, GUIDED),
        "Heun, 30 steps": ("heun", 30, None),
    }.items():
        found[name] = count / seconds_of(lambda how=how: draw(*how), minutes.device)
        minutes.write()
    network.train()


def parts(on_gpu: bool) -> Iterator[tuple[str, int, Callable[[Minutes], None]]]:
    """Name, seconds that it may take, and the part."""
    yield "product", 20, measure_product
    first, *others = CASES

    def step(case: tuple[int, float, float], way: str) -> Callable[[Minutes], None]:
        return lambda minutes: measure_step(minutes, *case, way)

    yield "step", 90, step(first, "as training does")
    yield "profile", 30, profile_step
    for case in others:
        yield f"step at {case[0]} px, {case[1]:.0%} masked", 40, step(case, "as training does")
    yield "stages", 5, project_stages
    yield "sampling", 60, measure_sampling
    for way in WAYS:
        if way != "as training does" and on_gpu:
            yield f"step, {way}", 40, step((256, 0.75, 0.5), way)


def table(record: dict[str, Any]) -> Table:
    """All numbers, one a row."""
    made = Table(title=f"the first minutes on {record['machine'].get('accelerator', 'a CPU')}", title_justify="left")
    for column in ("what", "number"):
        made.add_column(column)
    if "product_flops_per_second" in record:
        made.add_row("one large product in bfloat16", f"{record['product_flops_per_second'] / 1e12:.4g} TFLOP/s")
    for step in record["steps"]:
        case = Case(**step["case"])
        peak = "" if step["peak_bytes"] is None else f", peak {step['peak_bytes'] / 2**30:.3g} GiB"
        made.add_row(
            f"{case.pixels} px, {case.mask_ratio:.0%} masked, {step['batch']} images, {step['way']}",
            f"{step['seconds'] * 1e3:.4g} ms a step, {step['images_per_second']:.4g} images/s, "
            f"MFU {step['mfu']:.1%}{peak} (counted {step['counted_bytes'] / 2**30:.3g}), "
            f"first step {step['first_seconds']:.3g} s",
        )
    if "stages" in record:
        stages = record["stages"]
        for name, hours in stages["gpu_hours"].items():
            made.add_row(f"stage {name}", f"{hours:,.4g} GPU-hours")
        dollars = ", ".join(f"${spent:,.0f} at ${price} an hour" for price, spent in stages["dollars"].items())
        made.add_row("all four stages", f"{stages['days_on_8']:.3g} days on {CARDS} cards, {dollars}")
    for name, rate in record.get("pictures_per_second", {}).items():
        made.add_row(f"sampling, {name}", f"{rate:.3g} pictures/s")
    for name, error in record["failed"].items():
        made.add_row(f"failed: {name}", error)
    return made


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TimeoutError when the time is over."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"its {seconds} seconds were over")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    minutes = Minutes(arguments())
    if minutes.on_gpu:
        if not torch.cuda.is_available():
            raise SystemExit("torch finds no GPU here; to try this script: --device cpu --network small --batch 2")
        torch.set_float32_matmul_precision("high")  # as training does
    for name, seconds, part in parts(minutes.on_gpu):
        began = time.perf_counter()
        try:
            with limited(seconds):
                part(minutes)
        except Exception as error:
            minutes.record["failed"][name] = f"{type(error).__name__}: {error}"[:500]
            traceback.print_exc()
        print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
        minutes.write()
    Console(width=150).print(table(minutes.record))


if __name__ == "__main__":
    main()
