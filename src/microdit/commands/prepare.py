"""What `prepare.py` does, from its settings: the one place where the data room meets the encoders."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from omegaconf import DictConfig

from microdit.build import build, locate
from microdit.commands.compose import as_texts, choices, trusted
from microdit.commands.messages import check_device, console
from microdit.data.prepare.choices import Pick
from microdit.data.prepare.convert import check_resolutions, prepare
from microdit.data.prepare.duplicates import WithoutDuplicates
from microdit.data.prepare.embedded import EmbeddedShapes, ensure_shapes
from microdit.data.prepare.encoding import CaptionStorage, Encoders
from microdit.data.prepare.foreign import index_foreign
from microdit.data.prepare.launchers import Launcher, cores, devices_of
from microdit.data.prepare.look import sheet_of
from microdit.data.prepare.plan import Recipe, kept_of, share_of
from microdit.data.prepare.report import Summary
from microdit.data.sources.captioned import Source
from microdit.data.sources.held_out import PartOfSource, check_both_sides
from microdit.encoders import Autoencoder, TextEncoder
from microdit.files import folder_within, replacing
from microdit.kinds import Images, Limits, SettingsError, Share, check_arguments
from microdit.progress import progress_bar
from microdit.representation.features import PatchFeatures

SHEET = "look.png"
EMBEDDED = "microdit.data.prepare.embedded.EmbeddedShapes"
HERE = "microdit.data.prepare.launchers.ThisMachine"


class Preparation(TypedDict):
    """What conf/prepare.yaml may hold."""

    source: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    features: Mapping[str, Any]
    name: Annotated[str, Limits(1, 200)]
    split: Annotated[str, Limits(1, 200)]
    held_out: Share
    resolutions_px: Annotated[Sequence[Images], Limits(1, 100)]
    min_side_px: Images | None
    caption_storage: CaptionStorage
    batch_size: Images
    decode_threads: Images | None
    captions: Pick
    clean_captions: Sequence[str]
    transparency: str
    crops: int
    flips: bool
    aspect_ratio: float
    near_duplicates: Annotated[int, Limits(0, 31)] | None
    look: bool
    device: str | None
    launcher: Mapping[str, Any]
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
        settings["decode_threads"] or cores(),
        settings["captions"],
        settings["clean_captions"],
        settings["transparency"],
        settings["crops"],
        settings["flips"],
        settings["aspect_ratio"],
    )
    for folder in ("name", "split"):
        if not is_inside(settings[folder]):
            raise SettingsError(f"{folder}={settings[folder]} is no folder in {settings['paths']['data_root']}")
    root, share = Path(settings["paths"]["data_root"]), settings["held_out"]
    if settings["source"].get("_target_") == EMBEDDED:
        here = settings["launcher"].get("_target_") == HERE
        if settings["look"] or settings["near_duplicates"] is not None or not here:
            raise SettingsError(
                "look, near_duplicates and launcher are for pictures of your own; the shapes are drawn by code"
            )
        wanted = build(settings["source"], EmbeddedShapes, "source")
        with progress_bar("prepare") as progress:
            encoders = build_encoders(settings, autoencoder_name, text_encoder_name, devices_of(settings["device"])[0])
            return "\n".join(map(str, ensure_shapes(root, wanted, encoders, recipe, progress)))
    source = build(settings["source"], Source, "source")
    mine = share_of(len(source.shards()), settings["shard_of"])
    folder = root / settings["name"]
    if settings["look"]:
        return look(source, recipe, root, folder)
    if source.encoded:
        check_encoded(recipe, settings["near_duplicates"])
    launcher = build(settings["launcher"], Launcher, "launcher")
    encoders = build_encoders(settings, autoencoder_name, text_encoder_name, "cpu")  # without their weights
    check_resolutions(encoders, recipe)
    check_features(encoders, recipe, source)
    parts = {"train": False, "validation": True} if share else {settings["split"]: False}
    needed = not source.encoded
    encoders_on = partial(loaded_encoders, settings, autoencoder_name, text_encoder_name, needed)
    threads = settings["decode_threads"]
    with (
        progress_bar("prepare") as progress,
        launcher.workers(encoders_on, settings["device"], threads) as make,
        ThreadPoolExecutor(recipe.decode_threads, "hash") as pool,
    ):
        if share:
            check_both_sides(source, share)
        if settings["near_duplicates"] is not None:
            kept = folder_within(root, folder / "hashes")
            source = WithoutDuplicates(source, settings["near_duplicates"], kept, pool, mine, progress)
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
                make,
            )
            for split, held in parts.items()
        ]
    check_written(summaries)
    return "\n".join(map(str, summaries))


def look(source: Source, recipe: Recipe, root: Path, folder: Path) -> str:
    """Writes a sheet of samples with their captions, and nothing else; returns where it is and what was left out."""
    sheet, told = sheet_of(source, recipe)
    folder_within(root, folder).mkdir(parents=True, exist_ok=True)
    with replacing(folder / SHEET, "wb") as file:
        sheet.save(file, "png")
    return f"{folder / SHEET}: {told}"


def check_encoded(recipe: Recipe, near_duplicates: int | None) -> None:
    """Raises SettingsError for a choice that has no effect on latents, which are taken as they are."""
    if near_duplicates is not None:
        raise SettingsError("near_duplicates has no effect: the source holds latents, and no pictures")
    for name, value in kept_of(recipe).items():
        if name not in ("resolutions_px", "min_side_px") and (name, value) != ("caption_storage", "full"):
            raise SettingsError(f"{name}={value} has no effect: the source holds latents, which are taken as they are")


def check_features(encoders: Encoders, recipe: Recipe, source: Source) -> None:
    """Raises SettingsError where there is not one square of a picture that features could be of."""
    if encoders.features is None:
        return
    if source.encoded:
        raise SettingsError("features has no effect: the source holds latents, and no pictures; set features=none")
    if recipe.crops > 1 or recipe.flips or recipe.aspect_ratio > 1:
        raise SettingsError(
            "features are of one square of each picture: set crops=1 flips=false aspect_ratio=1, or features=none"
        )


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


def build_encoders(settings: Mapping[str, Any], autoencoder_name: str, text_encoder_name: str, device: str) -> Encoders:
    """The encoders of `settings` (groups `autoencoder`, `text_encoder` and `features`), on a device."""
    check_device(device)
    features = settings["features"]
    return Encoders(
        build(settings["autoencoder"], Autoencoder, "autoencoder").eval().to(device),
        build(settings["text_encoder"], TextEncoder, "text_encoder").eval().to(device),
        autoencoder_name,
        text_encoder_name,
        device,
        settings["autoencoder"],
        settings["text_encoder"],
        build(features, PatchFeatures, "features").eval().to(device) if "_target_" in features else None,
        features,
    )


def loaded_encoders(
    settings: Mapping[str, Any], autoencoder_name: str, text_encoder_name: str, needed: bool, device: str
) -> Encoders:
    """The same with their weights, where they are needed. Any process calls it, on any machine."""
    encoders = build_encoders(settings, autoencoder_name, text_encoder_name, device)
    for encoder in filter(None, (encoders.autoencoder, encoders.text_encoder, encoders.features) if needed else ()):
        encoder.load()  # pyright: ignore[reportAttributeAccessIssue]
    return encoders


def prepare_command(config: DictConfig) -> None:
    """Prepares what the command line asks for, and prints the closing count."""
    chosen, settings = choices(), trusted(config)
    as_texts(settings, Preparation)
    if (target := settings["source"].get("_target_")) != EMBEDDED:
        as_texts(settings["source"], locate(target, Source), "source")
    console.print(run_preparation(settings, chosen["autoencoder"], chosen["text_encoder"]), highlight=False)
