"""What a preparation sets out to do: kept in the folder it writes, so that nobody goes on with other settings."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated

from microdit.data.prepare.choices import CLEANING, Pick, colour_of
from microdit.data.prepare.encoding import CaptionStorage, Encoders
from microdit.data.shards.description import DESCRIPTION_NAME
from microdit.data.shards.index import INDEX_NAME, PARTS_FOLDER, part_path
from microdit.data.shards.tars import tar_members
from microdit.data.sources.captioned import Source
from microdit.files import alone_in, read_json, write_whole
from microdit.kinds import Images, Limits, OneOf, SettingsError, check_arguments

PLAN_NAME = "plan.json"
OF_CONTENTS = {("source", "pictures"), ("source", "rows"), ("input_shards",)}  # in a plan, what a source's contents say
LARGEST_REPORT = 1 << 30  # bytes; a plan names every input shard, and the report of one every picture left out


class PlanChangedError(ValueError):
    """A folder was begun with other settings; the message lists them, and the way out."""


@dataclass(frozen=True)
class Recipe:
    """How pictures become latents. `min_side_px`: smaller pictures are left out; None means the largest resolution.

    `caption_storage`: "full" keeps all positions, as the paper does, "trimmed" those up to the end of the text.
    `captions`: which of several are encoded; `clean_captions`: steps of `choices.CLEANING`, in order. `transparency`:
    what transparent places become, a colour or "random". `crops`: squares that are cut from each picture, the first the
    centre; `flips`: each also mirrored; training takes another one of them in each epoch. `aspect_ratio`: 1 for
    squares; above it pictures keep the nearest of some shapes of about the same area, none longer than so many times
    its other side.
    `batch_size` pictures are decoded by `decode_threads` while the batch before is encoded.
    """

    resolutions_px: Annotated[Sequence[Images], Limits(1, 100)]
    min_side_px: int | None = None
    caption_storage: CaptionStorage = "full"
    batch_size: Images = 64
    decode_threads: Images = 2
    captions: Pick = "all"
    clean_captions: Sequence[Annotated[str, OneOf(tuple(CLEANING))]] = ()
    transparency: str = "white"
    crops: Annotated[int, Limits(1, 16)] = 1
    flips: bool = False
    aspect_ratio: Annotated[float, Limits(1, 4)] = 1.0

    def __post_init__(self) -> None:
        check_arguments(Recipe, vars(self), "")
        colour_of(self.transparency)
        if len({*self.resolutions_px}) < len(self.resolutions_px):
            raise SettingsError(f"resolutions_px must be different sizes, such as [256,512], got {self.resolutions_px}")

    @property
    def smallest_side(self) -> int:
        """The shorter side, in pixels, that a picture must have."""
        return max(self.resolutions_px) if self.min_side_px is None else self.min_side_px


def latents_folder(split_folder: Path, encoders: Encoders, resolutions_px: Sequence[int]) -> Path:
    """Where the latents of a data split lie: ROOT/NAME/SPLIT/latents-AUTOENCODER-TEXT_ENCODER-RESOLUTIONSpx, with
    -FEATURES behind it where they are stored."""
    sizes = "-".join(map(str, sorted(resolutions_px)))
    features = "" if encoders.features is None else f"-{encoders.features.name}"
    return split_folder / f"latents-{encoders.autoencoder_name}-{encoders.text_encoder_name}-{sizes}px{features}"


def share_of(shards: int, shard_of: str) -> range:
    """The input shards of job "3/8": the third of eight. ValueError where it is no such thing."""
    try:
        job, jobs = (int(number) for number in str(shard_of).split("/"))
    except ValueError:
        job = jobs = 0
    if not 1 <= job <= jobs:
        raise ValueError(f'shard_of must be JOB/JOBS with 1 <= JOB <= JOBS, such as "3/8", got {shard_of!r}')
    return range(job - 1, shards, jobs)


def keep_plan(folder: Path, source: Source, encoders: Encoders, recipe: Recipe, refresh: bool = False) -> None:
    """Write the plan into a folder without samples, or check that it is the one there. PlanChangedError listing what
    differs, but where the source has other contents alone and it is to be refreshed."""
    plan = {
        "source": dict(source.identity),
        "input_shards": source.shards(),
        "autoencoder": encoders.autoencoder_name,
        "text_encoder": encoders.text_encoder_name,
        "autoencoder_settings": dict(encoders.autoencoder_settings),
        "text_encoder_settings": dict(encoders.text_encoder_settings),
        **({} if encoders.features is None else {"features": encoders.features.name}),
        "features_settings": dict(encoders.features_settings),
        "recipe": kept_of(recipe),
    }
    path = folder / PLAN_NAME
    with alone_in(folder):
        if path.exists() and not may_be_replaced(folder, plan, refresh):
            return
        write_whole(path, json.dumps(plan, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def kept_of(recipe: Recipe) -> dict[str, object]:
    """What a plan keeps of a recipe: all that changes what is made; what was added since the first plans, where it is
    not as it was then."""
    first = ("resolutions_px", "min_side_px", "caption_storage")
    usual = {each.name: each.default for each in fields(Recipe)}
    kept = {name: list(value) if isinstance(value, tuple | list) else value for name, value in asdict(recipe).items()}
    kept = {name: value for name, value in kept.items() if name not in ("batch_size", "decode_threads")}
    usual["clean_captions"] = []
    return {name: value for name, value in kept.items() if name in first or value != usual[name]}


def may_be_replaced(folder: Path, plan: dict[str, object], refresh: bool) -> bool:
    """Whether another plan than the one in a folder takes its place: nothing was made by it yet, or it is the same but
    for the contents of the source, and is to be refreshed. PlanChangedError as `keep_plan`."""
    cure = "give the data another name (name=OTHER), or delete that folder to make it anew"
    kept, now = flat(read_json(folder / PLAN_NAME, cure, LARGEST_REPORT)), flat(json.loads(json.dumps(plan)))
    changed = [name for name in dict.fromkeys([*now, *kept]) if kept.get(name) != now.get(name)]
    if not changed:
        return False
    tars = sorted(folder.glob("*.tar"))
    if not any(next(tar_members(tar), None) for tar in tars):
        remove_made(folder, tars)
        return True
    contents_alone = set(changed) <= OF_CONTENTS
    if refresh and contents_alone:
        return True
    differences = "; ".join(
        f"{'.'.join(name)} was {brief(kept.get(name))}, is now {brief(now.get(name))}" for name in changed
    )
    refreshed = "Make what changed anew with refresh=true, give" if contents_alone else "Give"
    raise PlanChangedError(
        f"{folder} was begun with other settings ({differences}). {refreshed} the data another name "
        "(name=OTHER), or delete that folder to make it anew"
    )


def remove_made(folder: Path, shards: Sequence[Path]) -> None:
    """Remove output shards, after what tells of them."""
    for name in (DESCRIPTION_NAME, INDEX_NAME):
        (folder / name).unlink(missing_ok=True)
    for shard in shards:
        for path in (shard, part_path(shard), report_path(shard)):
            path.unlink(missing_ok=True)


def report_path(shard: Path) -> Path:
    """Where the report of one output shard is kept."""
    return shard.parent / PARTS_FOLDER / f"{shard.stem}.json"


def flat(plan: dict[str, object]) -> dict[tuple[str, ...], object]:
    """A plan with the settings of each part beside the others, so that only those that differ need be told."""
    alone = {(name,): value for name, value in plan.items() if not isinstance(value, dict)}
    parts = {name: value for name, value in plan.items() if isinstance(value, dict)}
    return alone | {(part, name): value for part, values in parts.items() for name, value in values.items()}


def brief(value: object) -> str:
    """A value in a sentence."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 160 else f"{text[:157]}..."
