"""What is known of true pictures, kept beside them: every evaluation compares with the same ones."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from microdit.checkpoints.export import read_weights, write_weights
from microdit.data.sources.captioned import Source
from microdit.evaluation.frechet import Features
from microdit.evaluation.pictures import fingerprint
from microdit.evaluation.subject import Subject
from microdit.files import damaged, folder_within
from microdit.kinds import SettingsError

FOLDER = ".statistics"  # the end of its name, after that of what it is about
VERSION = 1
KINDS = (torch.float32, torch.float64, torch.int64)


def of_true_pictures(
    subject: Subject,
    source: Source,
    network: Features,
    about: Mapping[str, Any],
    make: Callable[[], dict[str, Tensor]],
    shapes: Mapping[str, tuple[int | None, ...]],
) -> dict[str, Tensor]:
    """What `make` computes of a source's pictures by a feature network, which is kept in SOURCE.statistics and taken
    from there the next time, which is said. `about`: what it depends on beside both, such as how many pictures;
    `shapes`: of the tensors, None for any length.

    Sources without a place of their own, such as addresses, have nothing kept, nor those where nothing can be written,
    which is said. With `subject.refresh` it is made anew. Raises CheckpointError for a file that is not
    as it was written, DamagedFileError for one that holds something else.
    """
    kept = subject.ranks.of_first(lambda: place_of(source, network, about))
    if kept is None:
        return make()
    name = f"{network.name} of true pictures"
    if not subject.refresh:
        found = subject.ranks.of_first(lambda: read_kept(kept, shapes) if kept.is_file() else None)
        if found is not None:
            subject.say(f"{name}: as kept in {kept} (refresh=true computes them anew)")
            return found
    made = make()
    if subject.ranks.leads:
        try:
            write_weights(made, folder_within(kept.parent.parent, kept.parent) / kept.name, {})
            subject.say(f"{name}: kept in {kept}")
        except (OSError, SettingsError) as error:  # also where a link leads elsewhere
            subject.say(f"{name}: not kept for the next time ({error})")
    return made


def place_of(source: Source, network: Features, about: Mapping[str, Any]) -> Path | None:
    """Where what is known of these pictures by this network is kept: its name changes with the files of the source, the
    weights, the way pictures are resized, and how many they are. None where the source has no place."""
    place = source.place()
    if place is None:
        return None
    states = [source.state(shard) for shard in range(len(source.shards()))]
    kind = f"{type(network).__module__}.{type(network).__qualname__}"
    told = [VERSION, dict(source.identity), states, kind, network.name, fingerprint(network), dict(about)]
    key = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    return place.with_name(place.name + FOLDER) / f"{network.name}-{key}.safetensors"


def read_kept(path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, Tensor]:
    cure = "remove it, or evaluate with refresh=true"
    found = read_weights(path, cure)
    try:
        if {*found} != {*shapes}:
            raise ValueError(f"it holds {', '.join(sorted(found))}, not {', '.join(shapes)}")
        for name, shape in shapes.items():
            got = tuple(found[name].shape)
            wanted = tuple(there if asked is None else asked for asked, there in zip(shape, got, strict=False))
            if len(got) != len(shape) or got != wanted:
                raise ValueError(f"{name} has the shape {got}")
            if found[name].dtype not in KINDS or not found[name].isfinite().all():
                raise ValueError(f"{name} holds what is no number")
    except ValueError as error:
        raise damaged(path, error, cure) from error
    return found
