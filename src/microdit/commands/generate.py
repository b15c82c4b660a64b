"""What `generate.py` does: prompts to one picture file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
from omegaconf import DictConfig

from microdit.commands.compose import as_texts, trusted
from microdit.commands.messages import check_device, console, tell_places
from microdit.files import replacing
from microdit.grid import not_shown, prompt_grid, sheet_of
from microdit.kernels.compile import compile_network
from microdit.kinds import Images, Limits, SettingsError, Width, check_arguments
from microdit.pipeline import LatentDiffusion
from microdit.pretrained import EMBEDDED
from microdit.progress import progress_bar
from microdit.runs.folder import PIPELINE_FILE, places_named, run_of

LARGEST_SIDES = {".webp": 16_383, ".jpg": 65_500, ".jpeg": 65_500}  # px, as the formats and their libraries have it
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
    path = Path(checkpoint).expanduser()
    if path.is_file() and not (path.parent.parent / PIPELINE_FILE).is_file():
        return LatentDiffusion.from_released(path, autoencoder_weights, text_encoder_weights)
    pipeline = LatentDiffusion.load(path, weights, autoencoder_weights, text_encoder_weights)
    tell_places(places_named(pipeline.settings, [run_of(path)]), run_of(path) / PIPELINE_FILE)
    return pipeline


def generate_grid(
    checkpoint: str,
    prompts: str | Sequence[str],
    num_inference_steps: int | None,
    guidance_scale: float | None,
    sampler: str | None,
    guidance_interval: Sequence[float] | Literal["all"] | None,
    temperature: float | None,
    guidance: str | None,
    weaker: str | None,
    precision: str | None,
    seed: int | None,
    weights: str,
    autoencoder_weights: str | None,
    text_encoder_weights: str | None,
    batch_size: Images,
    device: str,
    compile: bool,
    output: str,
    image_size: Annotated[Sequence[Width], Limits(2, 2)] | None = None,
    quality: float | None = None,
) -> Path:
    """Writes a grid of one picture a prompt, prompts below, and returns its path. One text is one prompt. Of how they
    are drawn, None is as the run has it. What can be known before drawing is checked before.

    Raises CheckpointError for a checkpoint that is missing or does not fit, SettingsError without prompts or for a file
    that is no picture, ValueError for a sampler, interval or temperature that LatentDiffusion.generate refuses.
    """
    path = Path(output)
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise SettingsError("""prompts is empty: give some, such as prompts='["a red circle"]'""")
    if path.suffix.lower() not in KINDS:
        raise SettingsError(f"output={output}: name a .png, .jpg or .webp file")
    if path.is_dir():
        raise SettingsError(f"output={output} is a folder: name a file in it")
    check_device(device)
    pipeline = open_pipeline(checkpoint, weights, autoencoder_weights, text_encoder_weights).to(device)
    away_from = None
    if weaker is not None:
        away_from = open_pipeline(weaker, weights, autoencoder_weights, text_encoder_weights).to(device)
    size = None if image_size is None else (image_size[0], image_size[1])
    height, width = (side * pipeline.autoencoder.downscale for side in pipeline.latent_shape(size)[1:])
    check_sheet(path, sheet_of(prompts, height, width).size)
    if letters := not_shown(prompts):
        console.print(
            f"no font on this machine shows {letters[:40]}: below the pictures these are escapes. Install a font that "
            "has them, such as Noto Sans CJK",
            highlight=False,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if compile:
        for each in (pipeline, away_from):
            if each is not None:
                compile_network(each.dit, torch.device(device).type)
    with progress_bar("generating") as report:
        images = pipeline.generate(
            prompts,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            guidance_interval=guidance_interval,
            temperature=temperature,
            guidance=guidance,
            quality=quality,
            weaker=away_from,
            precision=precision,
            seed=seed,
            batch_size=batch_size,
            image_size=size,
            progress=lambda done, total: report(done, total, "network evaluations"),
        )
    with replacing(path, "wb") as file:
        prompt_grid(images, prompts).save(file, KINDS[path.suffix.lower()])
    return path


def check_sheet(path: Path, size: tuple[int, int]) -> None:
    """Raises SettingsError where a sheet of this width and height, in pixels, is larger than the format of its file."""
    most = LARGEST_SIDES.get(path.suffix.lower())
    if most is not None and max(size) > most:
        raise SettingsError(
            f"output={path}: a sheet of all prompts has {size[0]} x {size[1]} px, and {path.suffix} ends at {most} px "
            f"a side. Draw fewer or shorter prompts at once, or type output={path.with_suffix('.png')}"
        )


def generate_command(config: DictConfig) -> None:
    """Draws what the command line asks for, and says where it is."""
    settings = trusted(config)
    as_texts(settings, generate_grid)
    check_arguments(generate_grid, settings, "")
    console.print(f"wrote {generate_grid(**settings)}", highlight=False)
