"""A trained network as a folder that diffusers opens by itself, with the code that it needs inside."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_edm_dpmsolver_multistep import EDMDPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_edm_euler import EDMEulerScheduler
from torch import Tensor

from microdit.checkpoints.export import write_weights
from microdit.checkpoints.reading import latest_checkpoint
from microdit.encoders.autoencoder_kl import KLAutoencoder
from microdit.encoders.open_clip_text import CONFIG, OpenClipTextEncoder
from microdit.encoders.pixel import PixelAutoencoder
from microdit.encoders.weights import weights_folder
from microdit.encoders.words import WordsTextEncoder
from microdit.files import alone_in, partial_name, read_json, room_for
from microdit.hub.bundle import bundled
from microdit.hub.diffusion_pipeline import CODE, OBJECTIVES, MicroDiTPipeline
from microdit.hub.transformer import TOKEN_PATHS, MicroDiTTransformer2DModel
from microdit.kinds import SettingsError
from microdit.model.sizes import layerwise_scaled
from microdit.pipeline import WEIGHTS_FILE, LatentDiffusion
from microdit.pretrained import EMBEDDED
from microdit.runs.folder import checkpoint_step, is_checkpoint

WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers calls them
SCHEDULERS = {"heun": EDMEulerScheduler, "dpm_solver_2m": EDMDPMSolverMultistepScheduler}
ENCODERS: dict[str, dict[str, type]] = {
    "autoencoder": {each.__name__: each for each in (KLAutoencoder, PixelAutoencoder)},
    "text_encoder": {each.__name__: each for each in (OpenClipTextEncoder, WordsTextEncoder)},
}
HOW = """---
library_name: diffusers
pipeline_tag: text-to-image
---
A text-to-image network trained with microdit, for diffusers. Its code is in this folder: read it before you trust it.

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("THIS FOLDER", trust_remote_code=True)
pipeline("a red circle").images[0].save("circle.png")
```
"""


def export_diffusers(run: str | Path, weights: str = "ema", output: Path | None = None) -> Path:
    """Writes the network of a run, of a checkpoint in it or of a saved folder, with its encoders and the code, as a
    folder for `diffusers.DiffusionPipeline.from_pretrained`; returns the folder's path.

    `run` and `weights` are as `LatentDiffusion.load` takes them; the folder is new, by default in the run's. Raises
    SettingsError where it is there already, and for parts that are not this package's own; FileNotFoundError or
    ValueError where the encoders' weights cannot be had.
    """
    output = default_output(run, weights) if output is None else output
    refuse_taken(output)
    pipeline = LatentDiffusion.load(run, weights)
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_name(output)
    with alone_in(output.parent):  # two that write the same folder would put half of each into it
        refuse_taken(output)
        if partial.exists():
            shutil.rmtree(partial)  # of an export that was ended
        try:
            with room_for(output):
                partial.mkdir()
                write_folder(pipeline, partial)
            partial.replace(output)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return output


def refuse_taken(output: Path) -> None:
    if output.exists():
        raise SettingsError(f"{output} is there already: name another with --output, or remove it")


def default_output(run: str | Path, weights: str) -> Path:
    """RUN/diffusers_ema_step_N of a run or its checkpoint, FOLDER/diffusers of a saved folder."""
    if str(run).startswith(EMBEDDED):
        raise SettingsError(f"{run} is part of the package: say with --output where its folder is to be")
    run = Path(run)
    if (run / WEIGHTS_FILE).is_file():
        return run / "diffusers"
    checkpoint = run if is_checkpoint(run) else latest_checkpoint(run)
    return checkpoint.parent.parent / f"diffusers_{weights}_step_{checkpoint_step(checkpoint):07d}"


def write_folder(pipeline: LatentDiffusion, folder: Path) -> None:
    """The files of the folder. SettingsError for parts that are not this package's own."""
    for group, classes in ENCODERS.items():
        our_name(getattr(pipeline, group), classes, group)
    write_part(folder / "transformer", "transformer", transformer_config(pipeline), pipeline.dit.state_dict())
    scheduler = SCHEDULERS[pipeline.sampling.sampler]
    scheduler(sigma_data=pipeline.objective.sigma_data).save_pretrained(str(folder / "scheduler"))
    write_text_encoder(pipeline, folder / "text_encoder")
    vae: Any = None
    if isinstance(pipeline.autoencoder, KLAutoencoder):
        vae = pipeline.autoencoder.load()
        vae.save_pretrained(str(folder / "vae"))
    index = {
        "_class_name": [CODE, MicroDiTPipeline.__name__],
        "_diffusers_version": diffusers.__version__,
        "transformer": ["microdit_transformer", MicroDiTTransformer2DModel.__name__],
        "text_encoder": ["microdit_text_encoder", "MicroDiTTextEncoder"],
        "scheduler": ["diffusers", scheduler.__name__],
        "vae": [None, None] if vae is None else ["diffusers", type(vae).__name__],
        "sampling": asdict(pipeline.sampling),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / f"{CODE}.py").write_text(bundled("microdit.hub.diffusion_pipeline"))
    (folder / "README.md").write_text(HOW)


def transformer_config(pipeline: LatentDiffusion) -> dict[str, Any]:
    """What MicroDiTTransformer2DModel is made of."""
    settings, dit = pipeline.settings, pipeline.dit
    if settings is None:
        raise ValueError("this pipeline was built without settings; use build_pipeline(), or pass settings=...")
    given: dict[str, Any] = {"in_channels": dit.in_channels, "caption_channels": dit.caption_channels}
    if dit.quality_dropout is not None:
        raise SettingsError("the network reads a quality of pictures, which an exported folder has no place for")
    given |= {"masks_padding": True} if dit.masks_padding else {}
    path = {name: value for name, value in settings["token_path"].items() if name != "_target_"}
    return {
        "_class_name": MicroDiTTransformer2DModel.__name__,
        "_diffusers_version": diffusers.__version__,
        "network": layerwise_scaled(**settings["model"], **given),
        "masking": {"name": our_name(dit.token_path, TOKEN_PATHS, "masking"), **path},
        "objective": {"name": our_name(pipeline.objective, OBJECTIVES, "objective"), **asdict(pipeline.objective)},
    }


def write_text_encoder(pipeline: LatentDiffusion, folder: Path) -> None:
    """The text encoder, with its weights where it has any."""
    encoder: Any = pipeline.text_encoder
    if isinstance(encoder, WordsTextEncoder):
        config = {"channels": encoder.channels, "length": encoder.length}
        code, state = "words_text_encoder", {"positions": encoder.positions}
    else:
        code, state = "clip_text_encoder", encoder.load().state_dict()  # first, because it looks at what is told below
        place = weights_folder(encoder.weights, [CONFIG], "text_encoder.weights")
        told = read_json(place / CONFIG[0], "download it again")["model_cfg"]
        config = {name: told[name] for name in ("embed_dim", "text_cfg", "quick_gelu") if name in told}
    write_part(folder, code, {"_class_name": "MicroDiTTextEncoder", **config}, state)


def write_part(folder: Path, code: str, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """A model of diffusers with the code for it: `code` is a module of this room."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / f"microdit_{folder.name}.py").write_text(bundled(f"{__name__.rpartition('.')[0]}.{code}"))
    write_weights(state, folder / WEIGHTS, {"format": "pt"})


def our_name(part: object, ours: Mapping[str, type], group: str) -> str:
    """The name of a part's class. SettingsError where it is none of ours."""
    if ours.get(type(part).__name__) is not type(part):
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        raise SettingsError(f"{group}: {kind} is not of this package, and its code cannot be put into the folder")
    return type(part).__name__
