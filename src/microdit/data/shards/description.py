"""`dataset.json`: what a folder of latent shards holds and which encoders made it, so that training asks for the
same."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from microdit.files import DamagedFileError, read_described, write_whole

DESCRIPTION_NAME = "dataset.json"


class MismatchError(ValueError):
    """Training asks for other encoders or sizes than the data was prepared with; the message says which, and the way
    out."""


@dataclass(frozen=True)
class LatentDescription:
    """One folder of latent shards.

    `autoencoder` and `text_encoder`: their names, with `*_settings` for the record; None for tars from elsewhere.
    `caption_length` x `caption_width`: what a caption is read as. `caption_storage`: "full", or "trimmed" to the end
    of text. `features`: the name of the network whose features are stored beside the latents, None without.
    `aspect_ratio`: how much longer one side of a picture may be than the other, 1 where all are squares; the shape of
    each is in the index.
    """

    name: str
    split: str
    autoencoder: str | None
    text_encoder: str | None
    latent_channels: int
    downscale: int | None
    resolutions_px: list[int]
    caption_length: int
    caption_width: int
    caption_storage: str
    samples: int
    shards: int
    source: dict[str, object] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    bytes_a_sample: dict[str, float] = field(default_factory=dict)
    autoencoder_settings: dict[str, object] = field(default_factory=dict)
    text_encoder_settings: dict[str, object] = field(default_factory=dict)
    features: str | None = None
    features_settings: dict[str, object] = field(default_factory=dict)
    aspect_ratio: float = 1.0


def write_description(folder: Path, description: LatentDescription) -> None:
    """Write `dataset.json`, whole or not at all."""
    write_whole(folder / DESCRIPTION_NAME, json.dumps(asdict(description), indent=2, sort_keys=True) + "\n")


def read_description(path: Path) -> LatentDescription:
    """Read a `dataset.json`. MismatchError where there is none, or something else, OSError where it is no file."""
    if not path.exists():
        raise MismatchError(
            f"{path.parent} has no {path.name}: it is not prepared to its end. Run the command that prepared it again, "
            f"or for tars from elsewhere: python prepare.py index={path.parent}"
        )
    cure = (
        "delete it and run the command that prepared this folder again, or for tars from elsewhere: python prepare.py "
        f"index={path.parent}"
    )
    try:
        return read_described(path, LatentDescription, cure)
    except DamagedFileError as error:
        raise MismatchError(str(error)) from error
