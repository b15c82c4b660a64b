"""What cheaper samplers cost in quality: a trained run on shapes, drawn by each with the same prompts, noise and seeds.

Compositional accuracy asks whether captions are followed, two Frechet distances to true scenes whether pictures are
good and varied: one by the features of a classifier of shapes, one by those that the run's own network denoises with.
Heun with 59 evaluations is what the others are compared with, seed by seed; Heun with 19 is what 20 evaluations buy
without another sampler. A setting is no worse when its difference is within the spread of the seeds.

    python benchmarks/sampler_quality.py --run runs/THE_RUN
    python benchmarks/sampler_quality.py --run runs/THE_RUN --seeds 1 --count 64 --prompts 2   # for trying this script

Pictures are kept in --keep, and a run that is started again draws only those that are missing.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from measuring import Spread, publish
from torch import Tensor, nn

from microdit.evaluation.frechet import Moments, as_bytes, frechet_distance, moments_of
from microdit.evaluation.metric import Metric
from microdit.evaluation.shapes.compositional import ShapesCompositional
from microdit.evaluation.shapes.frechet import ShapesFrechet
from microdit.evaluation.shapes.scenes import held_out_scenes, rendered
from microdit.evaluation.subject import Subject
from microdit.kernels.cpu.host_memory import keep_freed_memory
from microdit.objectives.objective import denoise
from microdit.pipeline import LatentDiffusion
from microdit.sampling.samplers import SAMPLERS

NOISE_LEVEL = 0.55  # the median of the paper's training at 256 px, e^-0.6
REFERENCES = 1024  # true scenes that the denoiser's features are compared with


class DenoiserFeatures(nn.Module):
    """Pictures to what leaves the last block of a trained network, its mean over patches, without caption.

    All pictures are given the same noise, of NOISE_LEVEL.
    """

    def __init__(self, pipeline: LatentDiffusion):
        super().__init__()
        self.pipeline = pipeline
        self.num_features = pipeline.dit.final_layer.norm_final.normalized_shape[0]

    @torch.no_grad()
    def forward(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        network, left = self.pipeline.dit, []
        latents = self.pipeline.autoencoder.encode(pictures.float() / 255)
        noise = torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(0)).to(latents.device)
        captions = latents.new_zeros(len(latents), 1, network.caption_channels)
        levels = latents.new_full((len(latents), 1, 1, 1), NOISE_LEVEL)
        hook = network.blocks[-1].register_forward_hook(lambda _, __, tokens: left.append(tokens))
        try:
            denoise(network, latents + NOISE_LEVEL * noise, levels, captions, self.pipeline.objective)
        finally:
            hook.remove()
        return left[0].mean(dim=1)


Distance = Callable[[Iterable[Float[Tensor, "n 3 h w"]]], float]


def denoiser_distance(pipeline: LatentDiffusion, given: argparse.Namespace) -> Distance:
    """The Frechet distance of pictures to true scenes, by the run's own features."""
    features = DenoiserFeatures(pipeline)

    def moments(batches: Iterable[Float[Tensor, "n 3 h w"]]) -> Moments:
        return moments_of(features(as_bytes(batch).to(pipeline.device)) for batch in batches)

    side_px = pipeline.latent_shape()[-1] * pipeline.autoencoder.downscale
    references = held_out_scenes(given.domains, range(given.count, given.count + REFERENCES))
    true = moments(rendered(references, side_px))
    return lambda batches: frechet_distance(true, moments(batches))


def settings(interval: list[float]) -> dict[str, dict[str, Any]]:
    """Arguments of LatentDiffusion.generate by name; the first is the reference."""
    heun = {"sampler": "heun", "num_inference_steps": 30}
    few = {"sampler": "heun", "num_inference_steps": 10}
    dpm = {"sampler": "dpm_solver_2m", "num_inference_steps": 20}
    guided = {"guidance_interval": interval}
    return {
        "Heun": heun,
        "Heun, guided in an interval": heun | guided,
        "Heun, few steps": few,
        "DPM-Solver++(2M)": dpm,
        "DPM-Solver++(2M), guided in an interval": dpm | guided,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a training run on shapes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=256, help="pictures for the Frechet distance")
    parser.add_argument("--prompts", type=int, default=16, help="of each skill, for compositional accuracy")
    parser.add_argument("--domains", nargs="+", default=["synthetic"])
    parser.add_argument("--scale", type=float, default=3.0, help="guidance scale")
    parser.add_argument("--interval", type=float, nargs=2, default=[1.0, 80.0], help="noise levels that are guided")
    parser.add_argument("--only", nargs="+", help="samplers to draw with besides the first, by name")
    parser.add_argument("--keep", type=Path, help="folder for the pictures; not kept if none is given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def quality(
    pipeline: LatentDiffusion,
    by_denoiser: Distance,
    sampling: dict[str, Any],
    seed: int,
    folder: Path,
    given: argparse.Namespace,
) -> dict[str, float]:
    """All numbers of one setting and seed."""
    asked = {**sampling, "guidance_scale": given.scale, "seed": seed}
    metrics: list[Metric] = [
        ShapesCompositional(given.domains, given.prompts, 4 * given.prompts, asked),
        ShapesFrechet(given.domains, given.count, max(4096, given.count), asked),
    ]
    subject = Subject(pipeline, folder / f"seed_{seed}")
    numbers = {name: value for metric in metrics for name, value in metric.evaluate(subject)[0].items()}
    captions = [each.caption for each in held_out_scenes(given.domains, range(given.count))]
    pictures = subject.pictures("scenes", captions, asked)  # kept by ShapesFrechet
    return numbers | {"denoiser/distance": by_denoiser(pictures.batches())}


def main() -> None:
    given = arguments()
    keep_freed_memory()
    pipeline = LatentDiffusion.load(given.run).to(given.device)
    chosen = settings(given.interval)
    if given.only is not None:
        reference_name, *others = chosen
        if unknown := set(given.only) - set(others):
            raise SystemExit(f"no sampler is named {', '.join(sorted(unknown))}; there are: {', '.join(others)}")
        chosen = {name: chosen[name] for name in chosen if name == reference_name or name in given.only}
    keeping = tempfile.TemporaryDirectory() if given.keep is None else nullcontext(given.keep)
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    by_denoiser = denoiser_distance(pipeline, given)
    with keeping as folder:
        for seed in range(given.seeds):
            for name, sampling in chosen.items():
                numbers = quality(pipeline, by_denoiser, sampling, seed, Path(folder) / name.replace(" ", "_"), given)
                measured[name].append(numbers)
                print(f"seed {seed}, {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()), flush=True)
    reference = measured[next(iter(chosen))]
    distance = next(key for key in reference[0] if key.startswith("frechet") and key.endswith("/distance"))
    rows = []
    for name, sampling in chosen.items():
        row = {
            "sampler": name,
            "evaluations": str(SAMPLERS[sampling["sampler"]].evaluations(sampling["num_inference_steps"])),
        }
        shown = {"overall accuracy": "compositional/overall", "colour": "compositional/single_object_colour"}
        for title, key in (shown | {"Frechet distance": distance, "denoiser's": "denoiser/distance"}).items():
            differences = [own[key] - other[key] for own, other in zip(measured[name], reference, strict=True)]
            row[title] = Spread.of([numbers[key] for numbers in measured[name]]).show()
            row[f"{title}, minus Heun's"] = Spread.of(differences).show()
        rows.append(row)
    title = (
        f"samplers on {given.run.name}: guidance {given.scale:g}, interval {given.interval[0]:g} to "
        f"{given.interval[1]:g}, {given.seeds} seeds, median (lowest-highest)"
    )
    publish(title, rows, {"measured": measured, "settings": chosen}, given.json)


if __name__ == "__main__":
    main()
