"""What `generate.py` does: prompts to one picture file."""

from pathlib import Path

from microdit.build import SettingsError
from microdit.data.progress import progress_bar
from microdit.grid import prompt_grid
from microdit.pipeline import LatentDiffusion


def generate_grid(
    checkpoint: str,
    prompts: list[str],
    num_inference_steps: int,
    guidance_scale: float,
    seed: int | None,
    weights: str,
    batch_size: int,
    device: str,
    output: str,
) -> Path:
    """Writes a grid of one picture a prompt, prompts below, and returns its path.

    Raises CheckpointError for a checkpoint that is missing or does not fit, SettingsError without prompts or for a file
    that is no picture.
    """
    path = Path(output)
    if not prompts:
        raise SettingsError("""prompts is empty: give some, such as prompts='["a red circle"]'""")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise SettingsError(f"output={output}: name a .png, .jpg or .webp file")
    pipeline = LatentDiffusion.load(checkpoint, weights).to(device)
    with progress_bar("generating") as report:
        images = pipeline.generate(
            prompts,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            batch_size=batch_size,
            progress=lambda done, total: report(done, total, "network evaluations"),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    prompt_grid(images, prompts).save(path)
    return path
