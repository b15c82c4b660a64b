"""Opening a mix: from the folders that a configuration names to a stream of samples."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from microdit.data.shards.corruption import OnCorrupt
from microdit.data.shards.description import DESCRIPTION_NAME, LatentDescription, MismatchError, read_description
from microdit.data.shards.index import INDEX_NAME, ShardIndex
from microdit.data.shards.reader import LocalShards, ShardReader
from microdit.data.shards.remote import FileCache, RemoteShards, is_remote, join
from microdit.data.shards.tars import FEATURES_FIELD, QUALITY_FIELD
from microdit.data.stream.buckets import BucketStream
from microdit.data.stream.stream import LatentSource, LatentStream
from microdit.files import LARGEST_SETTINGS, read_described

GIGABYTE = 10**9
# How the sets of the mixes in conf/ are prepared: each by the source of its name.
BY_NAME = {
    name: f"source={name}" for name in ("cc12m", "sa1b", "textcaps", "journeydb", "diffusiondb", "cifar_captions")
}
BY_NAME |= {"coco": "source=coco_2014", "cc12m_512px": "source=cc12m name=cc12m_512px min_side_px=512"}


class DataMissingError(FileNotFoundError):
    """A mix names data that is not there; the message names the folder and the command that makes it."""


def open_mix(
    sources: Sequence[Mapping[str, object]],
    *,
    resolution_px: int,
    seed: int,
    autoencoder: str,
    text_encoder: str,
    latent_channels: int | None = None,
    caption_shape: tuple[int, int] | None = None,
    shuffle: bool = True,
    on_corrupt: OnCorrupt = "error",
    max_corrupt_share: float = 0.01,
    cache_folder: str | None = None,
    cache_gigabytes: float = 50.0,
    pin_memory: bool = False,
    features: str | None = None,
    feature_channels: int | None = None,
    batch_size: int | None = None,
    quality: bool = False,
) -> LatentStream | BucketStream:
    """The stream of a mix. Each source is {name, folder, weight}: `folder` is ROOT/NAME/SPLIT or the folder of latent
    shards itself, local or a URL; `weight` is a number (a share, in any unit) or "size". `autoencoder`,
    `text_encoder`: their names. `latent_channels`, `caption_shape` (length, width): of the encoders as they are set
    now. `features`: the name of those that each sample has to have, None for none; `feature_channels`: of each place.
    `batch_size`: of the steps, each of which has pictures of one shape where a source has several; needed there.
    `quality`: whether each sample has to have one.

    DataMissingError, IndexMissingError, MismatchError: each says which command to run.
    """
    if not sources:
        raise DataMissingError(
            "the mix names no source to read: data_mix.sources (of data_mix.kinds) and data_mix.validation need one "
            "each"
        )
    opened = []
    for source in sources:
        name, location, weight = str(source["name"]), str(source["folder"]), source.get("weight", "size")
        cache = file_cache(location, cache_folder, cache_gigabytes)
        folder = (
            location
            if cache
            else str(find_latents(Path(location), name, resolution_px, autoencoder, text_encoder, features))
        )
        reader, description = open_folder(folder, cache)
        check_names(folder, description, autoencoder, text_encoder)
        check_features(folder, description, reader, features, feature_channels)
        if quality and QUALITY_FIELD not in reader.index.fields:
            raise MismatchError(
                f"{folder} holds no quality of its pictures, and training reads it (model.quality_dropout): prepare "
                "the data anew from a table or Parquet files with source.quality_column=COLUMN, numbers from 0 to 1, "
                "or train with model.quality_dropout=null"
            )
        check_sizes(folder, description, latent_channels, caption_shape)
        if not reader.index.rows:
            raise DataMissingError(
                f"data_mix source {name}: {folder} holds no samples; its rejects.csv says why, or hold out a larger "
                f"share of the pictures: python prepare.py held_out=0.2 name=ANOTHER_NAME ..."
            )
        share = reader.index.rows if weight == "size" else weight
        if not isinstance(share, int | float) or not share > 0:
            raise ValueError(
                f'data_mix source {name}: weight must be "size" or a positive number, got {weight!r} ({share})'
            )
        opened.append(LatentSource(name, reader, description, share))
    options: dict[str, Any] = {
        "on_corrupt": on_corrupt,
        "max_corrupt_share": max_corrupt_share,
        "pin_memory": pin_memory,
        "features": features is not None,
        "quality": quality,
    }
    if any(source.description.aspect_ratio > 1 for source in opened):
        if batch_size is None:
            raise ValueError("the mix has pictures of several shapes: open_mix needs the batch_size of the steps")
        return BucketStream(opened, resolution_px, seed, batch_size, shuffle, **options)
    return LatentStream(opened, resolution_px, seed, shuffle, **options)


def file_cache(location: str, folder: str | None, gigabytes: float) -> FileCache | None:
    """A cache for a remote location; None for a local one."""
    if not is_remote(location):
        return None
    if folder is None:
        raise ValueError(f"{location} is remote: say where its shards may be kept, with cache_folder")
    return FileCache(Path(folder), int(gigabytes * GIGABYTE))


def find_latents(
    folder: Path, name: str, resolution_px: int, autoencoder: str, text_encoder: str, features: str | None = None
) -> Path:
    """The folder of latent shards in a data split that fits. DataMissingError saying how to make it."""
    if (folder / DESCRIPTION_NAME).exists() or (folder / INDEX_NAME).exists():
        return folder
    there = sorted(path.parent for path in folder.glob(f"latents-*/{DESCRIPTION_NAME}"))
    for candidate in there:
        description = read_description(candidate / DESCRIPTION_NAME)
        encoders = description.autoencoder, description.text_encoder
        there_too = features is None or description.features == features
        if encoders == (autoencoder, text_encoder) and resolution_px in description.resolutions_px and there_too:
            return candidate
    if not folder.exists() and (trained := folder.parent / "train").is_dir() and folder.name == "validation":
        raise DataMissingError(
            f"data_mix source {name}: there is no {folder}: {trained} was prepared with held_out=0, which keeps none "
            "for validation, or not to its end. Prepare it with held_out=0.05 under another name, or validate on what "
            f"is trained on: 'data_mix.validation=[{{name: {name}, folder: {trained}}}]'"
        )
    if name.startswith("shapes"):
        command = "python prepare.py source=shapes"
    elif name in BY_NAME:
        command = f"python prepare.py {BY_NAME[name]} ..., see experiments/paper_data,"
    else:
        command = f"python prepare.py source=folder source.path=YOUR_PICTURES name={name}"
    command += f" autoencoder={autoencoder} text_encoder={text_encoder} resolutions_px=[{resolution_px}]"
    command += "" if features is None else f" features={features}"
    few = "" if name.startswith("shapes") else " (held_out=0.2 keeps some for validation where there are few)"
    found = f"It has {', '.join(path.name for path in there)}. " if there else ""
    begun = [path.name for path in folder.glob("latents-*") if path not in there]
    found += f"{', '.join(begun)} is begun but not complete. " if begun else ""
    raise DataMissingError(
        f"data_mix source {name}: {folder} has no latents of {autoencoder} with captions of {text_encoder} at "
        f"{resolution_px} px{'' if features is None else f' and features {features}'}. "
        f"{found}Make them with: {command}{few}"
    )


def open_folder(folder: str, cache: FileCache | None) -> tuple[ShardReader, LatentDescription]:
    """The reader and the description of a folder of latent shards, local or remote. MismatchError where a tar is not in
    the index."""
    if cache is None:
        index = ShardIndex(Path(folder) / INDEX_NAME)
        unknown = sorted({tar.name for tar in Path(folder).glob("*.tar")} - set(index.shards))
        if unknown:
            named = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
            raise MismatchError(
                f"{folder} holds tars that its {INDEX_NAME} does not know: {named}. Move them away, or index them: "
                f"python prepare.py index={folder}"
            )
        return ShardReader(index, LocalShards(folder, index.shards)), read_description(Path(folder) / DESCRIPTION_NAME)
    index = cache.kept(join(folder, INDEX_NAME), ShardIndex, cache.max_bytes)
    described = partial(read_described, kind=LatentDescription, cure="it comes from elsewhere")
    description = cache.kept(join(folder, DESCRIPTION_NAME), described, LARGEST_SETTINGS)
    return ShardReader(index, RemoteShards(folder, index.shards, index.shard_bytes.tolist(), cache)), description


def check_names(folder: str, description: LatentDescription, autoencoder: str, text_encoder: str) -> None:
    """MismatchError where a folder was prepared with other encoders; tars from elsewhere name none and are trusted."""
    made = description.autoencoder, description.text_encoder
    asked = autoencoder, text_encoder
    if any(was not in (None, now) for was, now in zip(made, asked, strict=True)):
        raise MismatchError(
            f"{folder} was prepared with autoencoder {made[0]} and text encoder {made[1]}, training asks for "
            f"{asked[0]} and {asked[1]}. "
            f"Train with autoencoder={made[0]} text_encoder={made[1]}, or prepare the data anew"
        )


def check_features(
    folder: str, description: LatentDescription, reader: ShardReader, features: str | None, channels: int | None
) -> None:
    """MismatchError where a folder lacks the features that are asked for, or has some of another width; tars from
    elsewhere do not name theirs."""
    there = FEATURES_FIELD in reader.index.fields
    shape = reader.index.usual_shape(FEATURES_FIELD) if there else ()
    fits = len(shape) == 3 and channels in (None, shape[0])
    if features is None or (fits and description.features in (None, features)):
        return
    holds = f"the features {description.features or 'of a network that is not named'}" if there else "no features"
    holds += f", of the shape {list(shape)} instead of [{channels}, rows, columns]" if there and not fits else ""
    raise MismatchError(
        f"{folder} holds {holds}, and training aligns with {features}: prepare the data anew with features={features}, "
        "or train with representation=none"
    )


def check_sizes(
    folder: str, description: LatentDescription, latent_channels: int | None, caption_shape: tuple[int, int] | None
) -> None:
    """MismatchError where encoders of the same names, but with other settings, would give other sizes."""
    made = description.latent_channels, (description.caption_length, description.caption_width)
    asked = latent_channels or made[0], tuple(caption_shape or made[1])
    if made != asked:
        raise MismatchError(
            f"{folder} holds latents of {made[0]} channels and captions of {made[1]} (length, width), training's "
            "encoders "
            f"make {asked[0]} and {asked[1]}. Set the encoders as they were, see {folder}/{DESCRIPTION_NAME}, or "
            "prepare "
            f"the data anew"
        )
