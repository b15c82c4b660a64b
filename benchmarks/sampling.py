"""How long one picture takes: what reading captions once saves, and what fewer evaluations or less guidance save.

Plain Heun asks the network for both halves of guidance with the captions themselves, at each evaluation anew. The other
candidates take turns with it in the same process and start from the same noise, the last five of them with a network
that is compiled as `generate.py compile=true` does. A few steps are timed, of which as many are guided as in a whole
picture; what a whole picture takes, 30 steps of Heun or 20 of DPM-Solver++, follows from the time of one evaluation.
Rounding adds up over steps: the difference of whole pictures is that of --whole.

    python benchmarks/sampling.py                                     # MicroDiT_Tiny/2, one picture of 512 px, CPU
    python benchmarks/sampling.py --network nano --latents 16 --whole
    python benchmarks/sampling.py --network xl --device cuda --precision bf16 --batch 8 --whole
"""

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from measuring import Spread, check_writable, large_product, publish, take_turns
from memory import gigabytes, peak_bytes
from one_hot import with_one_hot_experts
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from train_step import CAPTION_LENGTH, NETWORKS, PRECISIONS, autocast

from microdit.kernels.compile import compile_network
from microdit.kernels.cpu.host_memory import keep_freed_memory
from microdit.model.dit import DiT
from microdit.sampling.guidance import guided_denoiser
from microdit.sampling.samplers import SAMPLERS, noise_schedule

SIGMA_DATA, GUIDANCE_SCALE = 0.9, 5.0
GUIDANCE_INTERVAL = (1.0, 80.0)  # of conf/callbacks and conf/metrics; 59 % of Heun's and 60 % of DPM's evaluations
WHOLE = {"heun": 30, "dpm_solver_2m": 20}  # steps of a whole picture
SIZES = {"nano": NETWORKS["small"], "tiny": NETWORKS["tiny"], "xl": NETWORKS["xl"]}


class Candidate(NamedTuple):
    """One way to a picture. `same_picture`: nothing but rounding may tell it from plain Heun's."""

    name: str
    sampler: str
    steps: int
    reads_once: bool = True
    one_hot: bool = False
    compiled: bool = True
    scale: float = GUIDANCE_SCALE
    interval: tuple[float, float] | None = None
    same_picture: bool = False


def candidates(whole: bool) -> list[Candidate]:
    """Plain Heun first. Of 3 steps of Heun, 5 evaluations, 3 are guided in the interval, and so are 3 of DPM's 5."""
    steps, fewer, guided = (WHOLE["heun"], *[WHOLE["dpm_solver_2m"]] * 2) if whole else (3, 2, 5)
    return [
        Candidate("plain Heun", "heun", steps, reads_once=False, compiled=False, same_picture=True),
        Candidate("plain Heun, one-hot experts", "heun", steps, False, one_hot=True, compiled=False, same_picture=True),
        Candidate("Heun, captions read once", "heun", steps, compiled=False, same_picture=True),
        Candidate("Heun, captions read once, compiled", "heun", steps, same_picture=True),
        Candidate("Heun, guided in an interval", "heun", steps, interval=GUIDANCE_INTERVAL),
        Candidate("Heun, guidance_scale=1", "heun", steps, scale=1.0),
        Candidate("DPM-Solver++(2M)", "dpm_solver_2m", fewer),
        Candidate("DPM-Solver++(2M), guided in an interval", "dpm_solver_2m", guided, interval=GUIDANCE_INTERVAL),
    ]


def chosen_candidates(given: argparse.Namespace) -> list[Candidate]:
    plain, *others = candidates(given.whole)
    names = [candidate.name for candidate in others]
    if unknown := set(given.only or names) - set(names):
        raise SystemExit(f"--only knows {', '.join(map(repr, names))}; not {', '.join(map(repr, sorted(unknown)))}")
    return [plain, *(candidate for candidate in others if candidate.name in (given.only or names))]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=SIZES, default="tiny")
    parser.add_argument("--latents", type=int, default=64, help="side of the latents: 64 is 512 px")
    parser.add_argument("--batch", type=int, default=1, help="pictures")
    parser.add_argument("--whole", action="store_true", help="time whole pictures instead of a few steps")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--only", nargs="+", help="these samplers, by the names in the table, beside plain Heun")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


@torch.no_grad()
def build(network: str, latents: int, device: torch.device) -> DiT:
    """A network whose every weight matters; a fresh one would answer zero, whatever its caption."""
    torch.manual_seed(0)
    with device:
        made = SIZES[network](input_size=latents, pos_interp_scale=latents / 32).eval()
    for parameter in made.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return made


@torch.no_grad()
def draw(network: nn.Module, candidate: Candidate, noise: Tensor, captions: Tensor, precision: str) -> Tensor:
    """The latents at which a candidate arrives."""
    with autocast(precision, noise.device):
        given = network.read_captions(captions) if candidate.reads_once else captions  # type: ignore[operator]
        denoiser = guided_denoiser(network, given, EDM(SIGMA_DATA), candidate.scale, candidate.interval)
        *_, latents = SAMPLERS[candidate.sampler].states(denoiser, noise, noise_schedule(candidate.steps))
    return latents


def flops_of(candidate: Candidate, given: argparse.Namespace) -> int:
    """Model FLOPs of a candidate, counted on the meta device; the one-hot products of a baseline are no work."""
    meta = torch.device("meta")
    network = build(given.network, given.latents, meta)
    noise, captions = inputs(network, given, meta)
    with FlopCounterMode(display=False) as counter:
        draw(network, candidate, noise, captions, "fp32")
    return counter.get_total_flops()


def inputs(network: DiT, given: argparse.Namespace, device: torch.device) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    noise = torch.randn(given.batch, network.in_channels, given.latents, given.latents, device=device)
    return noise, torch.randn(given.batch, CAPTION_LENGTH, network.caption_channels, device=device)


def main() -> None:
    given = arguments()
    keep_freed_memory()
    check_writable(given.json)
    device = torch.device(given.device)
    network = build(given.network, given.latents, device)
    one_hot = with_one_hot_experts(copy.deepcopy(network))
    compiled = copy.deepcopy(network)
    compile_network(compiled, device.type)
    noise, captions = inputs(network, given, device)
    chosen = chosen_candidates(given)
    pictures: dict[str, Tensor] = {}

    def work(candidate: Candidate) -> Callable[[], Any]:
        used = one_hot if candidate.one_hot else compiled if candidate.compiled else network

        def once() -> None:
            pictures[candidate.name] = draw(used, candidate, noise, captions, given.precision)

        return once

    product = large_product(PRECISIONS[given.precision], device)
    warm_up = work(Candidate("", "dpm_solver_2m", 2))
    peak = peak_bytes(warm_up, device)
    turns = {candidate.name: work(candidate) for candidate in chosen}
    seconds, rates = take_turns(turns, given.repeats, device, product, warmups=0)
    plain = chosen[0].name
    evaluations_plain, whole_plain = (SAMPLERS["heun"].evaluations(steps) for steps in (chosen[0].steps, WHOLE["heun"]))
    rows, measured = [], []
    for candidate in chosen:
        name, times = candidate.name, seconds[candidate.name]
        flops = flops_of(candidate, given)
        evaluations = SAMPLERS[candidate.sampler].evaluations(candidate.steps)
        whole = SAMPLERS[candidate.sampler].evaluations(WHOLE[candidate.sampler])
        fewer = (whole_plain / whole) / (evaluations_plain / evaluations)
        speedup = Spread.of([fewer * base / own for base, own in zip(seconds[plain], times, strict=True)])
        mfu = Spread.of([flops / own / rate for own, rate in zip(times, rates[name], strict=True)])
        difference = (pictures[name] - pictures[plain]).abs().max().item() if candidate.same_picture else None
        rows.append(
            {
                "sampler": name,
                "evaluations timed": str(evaluations),
                "TFLOP": f"{flops / 1e12:.3g}",
                "seconds": Spread.of(times).show(),
                "MFU": mfu.show(scale=100) + " %",
                "of a whole picture": str(whole),
                "faster than plain Heun": speedup.show(),
                "largest difference": "another picture" if difference is None else f"{difference:.1e}",
            }
        )
        measured.append(
            {
                **candidate._asdict(),
                "evaluations": evaluations,
                "flops": flops,
                "seconds": times,
                "speedup": speedup,
                "difference": difference,
            }
        )
    title = (
        f"{given.batch} picture(s) of {given.latents} x {given.latents} latents, {given.network}, {given.precision}, "
        f"guidance {GUIDANCE_SCALE:g} (interval: {GUIDANCE_INTERVAL[0]:g} to {GUIDANCE_INTERVAL[1]:g}), "
        f"{gigabytes(peak)} GB beside the weights at the peak"
    )
    record = {"peak_bytes": peak, "measured": measured, "settings": {k: str(v) for k, v in vars(given).items()}}
    publish(title, rows, record, given.json)


if __name__ == "__main__":
    main()
