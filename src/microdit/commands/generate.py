"""What `generate.py` does: prompts to one picture file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig

from microdit.commands.compose import trusted
from microdit.commands.messages import check_device, console, tell_places
from microdit.files import replacing
from microdit.grid import prompt_grid
from microdit.kernels.compile import compile_network
from microdit.kinds import SettingsError
from microdit.pipeline import LatentDiffusion
from microdit.pretrained import EMBEDDED
from microdit.progress import progress_bar
from microdit.runs.folder import PIPELINE_FILE, places_named, run_of

KINDS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}  # of pictures, by their files' names


def open_pipeline(
    checkpoint: str, weights: str, autoencoder_weights: str | None, text_encoder_weights: str | None
) -> LatentDiffusion:
    """The pipeline that comes with this package under an "embedded:" name, that of a run, of a checkpoint in it, of a
    saved folder, or of a released file that lies by itself.

    Raises CheckpointError for what is none of these.
    """
    if checkpoint.startswith(EMBEDDED):
        return LatentDiffusion.load(checkpoint, weights, autoencoder_weights, text_encoder_weights)
    path = Path(checkpoint)
    if path.is_file() and not (path.parent.parent / PIPELINE_FILE).is_file():
        return LatentDiffusion.from_released(path, autoencoder_weights, text_encoder_weights)
    pipeline = LatentDiffusion.load(path, weights, autoencoder_weights, text_encoder_weights)
    tell_places(places_named(pipeline.settings, [run_of(path)]), run_of(path) / PIPELINE_FILE)
    return pipeline


def generate_grid(
    checkpoint: str,
    prompts: list[str],
    num_inference_steps: int | None,
    guidance_scale: float | None,
    sampler: str | None,
    guidance_interval: Sequence[float] | Literal["all"] | None,
    temperature: float | None,
    precision: str | None,
    seed: int | None,
    weights: str,
    autoencoder_weights: str | None,
    text_encoder_weights: str | None,
    batch_size: int,
    device: str,
    compile: bool,
    output: str,
) -> Path:
    """Writes a grid of one picture a prompt, prompts below, and returns its path. Of how they are drawn, None is as the
    run has it.

    Raises CheckpointError for a checkpoint that is missing or does not fit, SettingsError without prompts or for a file
    that is no picture, ValueError for a sampler, interval or temperature that LatentDiffusion.generate refuses.
    """
    path = Path(output)
    if not prompts:
        raise SettingsError("""prompts is empty: give some, such as prompts='["a red circle"]'""")
    if path.suffix.lower() not in KINDS:
        raise SettingsError(f"output={output}: name a .png, .jpg or .webp file")
    check_device(device)
    pipeline = open_pipeline(checkpoint, weights, autoencoder_weights, text_encoder_weights).to(device)
    if compile:
        compile_network(pipeline.dit, torch.device(device).type)
    with progress_bar("generating") as report:
        images = pipeline.generate(
            prompts,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            guidance_interval=guidance_interval,
            temperature=temperature,
            precision=precision,
            seed=seed,
            batch_size=batch_size,
            progress=lambda done, total: report(done, total, "network evaluations"),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, "wb") as file:
        prompt_grid(images, prompts).save(file, KINDS[path.suffix.lower()])
    return path


def generate_command(config: DictConfig) -> None:
    """Draws what the command line asks for, and says where it is."""
    console.print(f"wrote {generate_grid(**trusted(config))}", highlight=False)
