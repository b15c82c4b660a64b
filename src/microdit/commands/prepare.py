"""What `prepare.py` does, from its settings: the one place where the data room meets the encoders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from microdit.build import build
from microdit.commands.compose import choices, trusted
from microdit.commands.messages import check_device, console
from microdit.data.prepare.convert import prepare
from microdit.data.prepare.embedded import EmbeddedShapes, ensure_shapes
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.foreign import index_foreign
from microdit.data.prepare.plan import Recipe
from microdit.data.sources.captioned import Source
from microdit.data.sources.held_out import PartOfSource
from microdit.encoders import Autoencoder, TextEncoder
from microdit.progress import progress_bar

EMBEDDED = "microdit.data.prepare.embedded.EmbeddedShapes"


def run_preparation(settings: Mapping[str, Any], autoencoder_name: str, text_encoder_name: str) -> str:
    """Do what the settings of `conf/prepare.yaml` ask; returns the closing count as text.

    SettingsError, FileNotFoundError, PlanChangedError, TarError: each says what to do next.
    """
    if settings["index"] is not None:
        with progress_bar("index") as progress:
            return index_foreign(Path(settings["index"]), settings["on_corrupt"], progress)
    encoders = build_encoders(settings, autoencoder_name, text_encoder_name)
    recipe = Recipe(
        settings["resolutions_px"],
        settings["min_side_px"],
        settings["caption_storage"],
        settings["batch_size"],
        settings["decode_threads"],
    )
    root = Path(settings["paths"]["data_root"])
    with progress_bar("prepare") as progress:
        if settings["source"].get("_target_") == EMBEDDED:
            wanted = build(settings["source"], EmbeddedShapes, "source")
            summaries = ensure_shapes(root, wanted, encoders, recipe, progress)
        else:
            source = build(settings["source"], Source, "source")
            share, folder = settings["held_out"], root / settings["name"]
            parts = {"train": False, "validation": True} if share else {settings["split"]: False}
            summaries = [
                prepare(
                    PartOfSource(source, share, held),
                    *(folder / split, encoders, recipe, settings["shard_of"], progress, root),
                )
                for split, held in parts.items()
            ]
    return "\n".join(map(str, summaries))


def build_encoders(settings: Mapping[str, Any], autoencoder_name: str, text_encoder_name: str) -> Encoders:
    """The encoders of `settings` (groups `autoencoder` and `text_encoder`), on `settings["device"]`."""
    device = settings["device"]
    check_device(device)
    return Encoders(
        build(settings["autoencoder"], Autoencoder, "autoencoder").eval().to(device),
        build(settings["text_encoder"], TextEncoder, "text_encoder").eval().to(device),
        autoencoder_name,
        text_encoder_name,
        device,
        settings["autoencoder"],
        settings["text_encoder"],
    )


def prepare_command(config: DictConfig) -> None:
    """Prepares what the command line asks for, and prints the closing count."""
    chosen = choices()
    console.print(run_preparation(trusted(config), chosen["autoencoder"], chosen["text_encoder"]), highlight=False)
