"""What `prepare.py` does, from its settings: the one place where the data room meets the encoders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from omegaconf import DictConfig

from microdit.build import build, locate
from microdit.commands.compose import as_texts, choices, trusted
from microdit.commands.messages import check_device, console
from microdit.data.prepare.choices import Pick
from microdit.data.prepare.convert import check_resolutions, prepare
from microdit.data.prepare.embedded import EmbeddedShapes, ensure_shapes
from microdit.data.prepare.encoding import CaptionStorage, Encoders
from microdit.data.prepare.foreign import index_foreign
from microdit.data.prepare.plan import Recipe, kept_of, share_of
from microdit.data.prepare.report import Summary
from microdit.data.sources.captioned import Source
from microdit.data.sources.held_out import PartOfSource, check_both_sides
from microdit.encoders import Autoencoder, TextEncoder
from microdit.kinds import Images, Limits, SettingsError, Share, check_arguments
from microdit.progress import progress_bar

EMBEDDED = "microdit.data.prepare.embedded.EmbeddedShapes"


class Preparation(TypedDict):
    """What conf/prepare.yaml may hold."""

    source: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    name: Annotated[str, Limits(1, 200)]
    split: Annotated[str, Limits(1, 200)]
    held_out: Share
    resolutions_px: Annotated[Sequence[Images], Limits(1, 100)]
    min_side_px: Images | None
    caption_storage: CaptionStorage
    batch_size: Images
    decode_threads: Images
    captions: Pick
    clean_captions: Sequence[str]
    transparency: str
    crops: int
    flips: bool
    device: str
    shard_of: str
    refresh: bool
    index: str | None
    on_corrupt: Literal["error", "skip"]
    paths: Mapping[str, str]


class NothingWrittenError(ValueError):
    """What was prepared holds no samples to train on, or none to validate on; the message says why, and what to do."""


def run_preparation(settings: Mapping[str, Any], autoencoder_name: str, text_encoder_name: str) -> str:
    """Do what the settings of `conf/prepare.yaml` ask; returns the closing count as text. What can be known before the
    first picture is read is checked first.

    SettingsError, FileNotFoundError, PlanChangedError, TarError, NothingWrittenError: each says what to do next.
    """
    check_arguments(Preparation, settings, "")
    if settings["index"] is not None:
        with progress_bar("index") as progress:
            return index_foreign(Path(settings["index"]), settings["on_corrupt"], progress)
    recipe = Recipe(
        settings["resolutions_px"],
        settings["min_side_px"],
        settings["caption_storage"],
        settings["batch_size"],
        settings["decode_threads"],
        settings["captions"],
        settings["clean_captions"],
        settings["transparency"],
        settings["crops"],
        settings["flips"],
    )
    for folder in ("name", "split"):
        if not is_inside(settings[folder]):
            raise SettingsError(f"{folder}={settings[folder]} is no folder in {settings['paths']['data_root']}")
    root, share = Path(settings["paths"]["data_root"]), settings["held_out"]
    if settings["source"].get("_target_") == EMBEDDED:
        wanted = build(settings["source"], EmbeddedShapes, "source")
        with progress_bar("prepare") as progress:
            encoders = build_encoders(settings, autoencoder_name, text_encoder_name)
            return "\n".join(map(str, ensure_shapes(root, wanted, encoders, recipe, progress)))
    source = build(settings["source"], Source, "source")
    share_of(len(source.shards()), settings["shard_of"])
    if source.encoded:
        check_encoded(recipe)
    encoders = build_encoders(settings, autoencoder_name, text_encoder_name)
    check_resolutions(encoders, recipe)
    for encoder in () if source.encoded else (encoders.autoencoder, encoders.text_encoder):
        encoder.load()  # pyright: ignore[reportAttributeAccessIssue]  # what is missing comes out before any work
    if share:
        check_both_sides(source, share)
    folder = root / settings["name"]
    parts = {"train": False, "validation": True} if share else {settings["split"]: False}
    with progress_bar("prepare") as progress:
        summaries = [
            prepare(
                PartOfSource(source, share, held),
                folder / split,
                encoders,
                recipe,
                settings["shard_of"],
                progress,
                root,
                settings["refresh"],
            )
            for split, held in parts.items()
        ]
    check_written(summaries)
    return "\n".join(map(str, summaries))


def check_encoded(recipe: Recipe) -> None:
    """Raises SettingsError for a choice that has no effect on latents, which are taken as they are."""
    for name, value in kept_of(recipe).items():
        if name not in ("resolutions_px", "min_side_px") and (name, value) != ("caption_storage", "full"):
            raise SettingsError(f"{name}={value} has no effect: the source holds latents, which are taken as they are")


def is_inside(name: str) -> bool:
    """Whether a name is that of something in a folder, and not elsewhere."""
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)


def check_written(summaries: Sequence[Summary]) -> None:
    """Raises NothingWrittenError, with the counts, where a finished split holds no sample."""
    empty = [summary for summary in summaries if not (summary.written or summary.missing)]
    if not empty:
        return
    counts = "\n".join(map(str, summaries))
    if len(empty) == len(summaries):
        cure = "Mend what is said above and run the same command again"
    else:
        cure = "Choose another share, under another name: name=ANOTHER held_out=0.2, or held_out=0 for no validation"
    named = " and ".join(str(summary.folder.parent) for summary in empty)
    raise NothingWrittenError(f"nothing was written into {named}.\n{counts}\n{cure}")


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
    chosen, settings = choices(), trusted(config)
    as_texts(settings, Preparation)
    if (target := settings["source"].get("_target_")) != EMBEDDED:
        as_texts(settings["source"], locate(target, Source), "source")
    console.print(run_preparation(settings, chosen["autoencoder"], chosen["text_encoder"]), highlight=False)
