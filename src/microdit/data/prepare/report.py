"""What came of a preparation: shard by shard, and the closing count with the index and the description of the whole."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import (
    LARGEST_REPORT,
    PLAN_NAME,
    PlanChangedError,
    Recipe,
    remove_made,
    report_path,
)
from microdit.data.shards.description import (
    DESCRIPTION_NAME,
    LatentDescription,
    read_description,
    write_description,
)
from microdit.data.shards.index import merge_folder
from microdit.data.sources.captioned import Ignored, Source
from microdit.data.sources.images import FilteredImageError
from microdit.files import alone_in, read_described, write_whole
from microdit.progress import on_one_line

REJECTS_NAME = "rejects.csv"
HALF_BYTES = 2
IGNORED = "ignored"
NUMBER = re.compile(r"\d{5,}")
REASONS_NAMED, NAMES_NAMED, LONGEST_REASON = 8, 3, 300
VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/.]\S*")  # names, numbers and paths in a reason


@dataclass
class ShardReport:
    """What became of one input shard. `caption_positions`: up to the end of the text. `captions_cut`: that are longer.
    `rejects`: key, kind, reason. `state`: of the files that it was read from."""

    input: str
    read: int = 0
    written: int = 0
    captions: int = 0
    caption_positions: int = 0
    captions_cut: int = 0
    state: str = ""
    rejects: list[list[str]] = field(default_factory=list)

    def reject(self, key: str, error: Exception) -> None:
        """Enter a picture that does not become a sample, as "filtered" or "broken"."""
        self.rejects.append([key, "filtered" if isinstance(error, FilteredImageError) else "broken", str(error)])


class CountError(RuntimeError):
    """What came of a source is not all that was found in it; the message has the numbers."""


@dataclass(frozen=True)
class Summary:
    """The closing count: `found` = written + filtered + broken + ignored. `reasons`: kind, reason, how many and the
    first names. `missing`: output shards still to be written by other jobs. `images`: read by this job, just now."""

    folder: Path
    found: int
    written: int
    filtered: int
    broken: int
    ignored: int
    reasons: list[tuple[str, str, int, list[str]]]
    captions: int
    captions_cut: int
    caption_length: int
    shards: int
    missing: int
    images: int
    seconds: float
    bytes_a_sample: dict[str, float]

    def __str__(self) -> str:
        speed = (
            f"; {self.images} pictures in {self.seconds:.1f} s, {self.images / max(self.seconds, 1e-9):.0f} images/s"
            if self.images
            else ""
        )
        lines = [
            f"{self.folder}: {self.written} written, {self.filtered} filtered, {self.broken} broken, {self.ignored} "
            f"ignored of {self.found} found, {self.shards} shards{speed}",
            *self.why(),
        ]
        if self.captions_cut:
            lines.append(
                f"warning: {self.captions_cut} of {self.captions} captions ({self.captions_cut / self.captions:.1%}) "
                f"are longer than the {self.caption_length} positions that the text encoder reads; their ends were cut"
            )
        if self.missing:
            lines.append(
                f"{self.missing} shards are still to be written by other jobs; the last one to end writes the index"
            )
        if self.bytes_a_sample:
            lines.append(
                "bytes a sample: " + ", ".join(f"{name} {value:,.0f}" for name, value in self.bytes_a_sample.items())
            )
        return "\n".join(lines)

    def why(self) -> list[str]:
        """The most frequent reasons, each with the first names, and where all of them are."""
        lines = []
        for kind, reason, count, names in self.reasons[:REASONS_NAMED]:
            more = f" and {count - len(names)} more" if count > len(names) else ""
            told = on_one_line([reason[:LONGEST_REASON], *names])
            lines.append(f"  {kind} {count}: {told[0]} ({', '.join(told[1:])}{more})")
        if (rest := len(self.reasons) - REASONS_NAMED) > 0:
            lines.append(f"  and for {rest} other reasons")
        if self.reasons:
            lines.append(
                f"why: {self.folder / REJECTS_NAME}" if not self.missing else "why: in rejects.csv, at the end"
            )
        return lines


def grouped(rejects: Iterable[Sequence[str]]) -> list[tuple[str, str, int, list[str]]]:
    """Rejects by kind and reason, the most frequent first. Reasons that differ in names and numbers alone are one,
    told as the first of them."""
    groups: dict[tuple[str, str], tuple[str, list[str], int]] = {}
    for key, kind, reason in rejects:
        alike = kind, VARYING.sub("", reason[:LONGEST_REASON])
        first, names, count = groups.get(alike, (reason, [], 0))
        groups[alike] = first, [*names, key] if len(names) < NAMES_NAMED else names, count + 1
    found = [(kind, first, count, names) for (kind, _), (first, names, count) in groups.items()]
    return sorted(found, key=lambda group: -group[2])


def write_report(shard: Path, report: ShardReport) -> None:
    """Keep the report of one output shard."""
    write_whole(report_path(shard), json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n")


def read_report(shard: Path) -> ShardReport:
    """The report of one output shard. DamagedFileError for what is none."""
    cure = f"remove {shard} and run the same command again"
    return read_described(report_path(shard), ShardReport, cure, LARGEST_REPORT)


def renew(folder: Path, source: Source, refresh: bool) -> None:
    """With `refresh`: remove the output shards whose input files are others by now, so that they are made anew; without
    it those of them that hold no sample, and PlanChangedError where there are any that do."""
    inputs = source.shards()
    with alone_in(folder):
        stale, empty, gone = [], [], []
        for shard in sorted(folder.glob("*.tar")):
            number = int(shard.stem) if NUMBER.fullmatch(shard.stem) else len(inputs)
            if number >= len(inputs):
                gone.append(shard)
            elif report_path(shard).exists() and (report := read_report(shard)).state not in ("", source.state(number)):
                (stale if report.written else empty).append(shard)
        if stale and not refresh:
            named = ", ".join(inputs[int(shard.stem)] for shard in stale[:3]) + (", ..." if len(stale) > 3 else "")
            raise PlanChangedError(
                f"{folder}: files of {len(stale)} of {len(inputs)} input shards changed after they were prepared "
                f"({named}): what was made of them is kept as it was. Make these anew with refresh=true, give the data "
                "another name (name=OTHER), or delete that folder to make it anew"
            )
        if outdated := [*stale, *empty, *(gone if refresh else ())]:
            remove_made(folder, outdated)


def finish(folder: Path, source: Source, encoders: Encoders, recipe: Recipe, images: int, seconds: float) -> Summary:
    """Count, and if every output shard is there, write the index, `rejects.csv` and `dataset.json`, once. CountError
    where what was found is not what it became, which would be a mistake in here."""
    inputs = source.shards()
    paths = [folder / f"{number:05d}.tar" for number in range(len(inputs))]
    there = [path for path in paths if path.exists()]
    reports = [read_report(path) for path in there]
    reports.append(ShardReport(""))  # for what lies beside the shards
    for item in source.beside():
        reports[-1].rejects.append([item.key, IGNORED if isinstance(item, Ignored) else "broken", item.reason])
        reports[-1].read += 1
    rejects = [reject for report in reports for reject in report.rejects if len(reject) == 3]
    kinds = Counter(kind for _, kind, _ in rejects)
    counts = {
        "found": sum(report.read for report in reports),
        "written": sum(report.written for report in reports),
        **{kind: kinds[kind] for kind in ("filtered", "broken", IGNORED)},
    }
    if counts["found"] != sum(counts.values()) - counts["found"]:
        raise CountError(f"{folder}: {counts} do not add up; please report it with {REJECTS_NAME}")
    cut = sum(report.captions_cut for report in reports)
    sizes = bytes_a_sample(reports, there, encoders, recipe)
    newest = max((path.stat().st_mtime_ns for path in there), default=0)
    if len(there) == len(inputs) and not is_described(folder, newest, counts):
        merge_folder(folder)
        with alone_in(folder):
            write_whole(folder / REJECTS_NAME, rejects_table(reports))
            write_description(
                folder,
                LatentDescription(
                    name=folder.parent.parent.name,
                    split=folder.parent.name,
                    autoencoder=encoders.autoencoder_name,
                    text_encoder=encoders.text_encoder_name,
                    latent_channels=encoders.autoencoder.channels,
                    downscale=encoders.autoencoder.downscale,
                    resolutions_px=list(recipe.resolutions_px),
                    caption_length=encoders.text_encoder.length,
                    caption_width=encoders.text_encoder.channels,
                    caption_storage=recipe.caption_storage,
                    samples=counts["written"],
                    shards=len(inputs),
                    counts=counts | {"captions_cut": cut},
                    bytes_a_sample=sizes,
                    source=json.loads((folder / PLAN_NAME).read_text(encoding="utf-8"))["source"],
                    autoencoder_settings=dict(encoders.autoencoder_settings),
                    text_encoder_settings=dict(encoders.text_encoder_settings),
                    features=None if encoders.features is None else encoders.features.name,
                    features_settings=dict(encoders.features_settings),
                    aspect_ratio=recipe.aspect_ratio,
                ),
            )
    return Summary(
        folder=folder,
        **counts,
        reasons=grouped(rejects),
        captions=sum(report.captions for report in reports),
        captions_cut=cut,
        caption_length=encoders.text_encoder.length,
        shards=len(inputs),
        missing=len(inputs) - len(there),
        images=images,
        seconds=seconds,
        bytes_a_sample=sizes,
    )


def is_described(folder: Path, newest_ns: int, counts: Mapping[str, int]) -> bool:
    """Whether the description is younger than every shard, and tells of as much."""
    description = folder / DESCRIPTION_NAME
    if not (description.exists() and description.stat().st_mtime_ns > newest_ns):
        return False
    kept = read_description(description).counts
    return "found" not in kept or all(kept.get(name) == count for name, count in counts.items())


def rejects_table(reports: list[ShardReport]) -> str:
    """Every picture that did not become a sample, as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["input", "key", "kind", "reason"])
    table.writerows([report.input, *reject] for report in reports for reject in report.rejects)
    return text.getvalue()


def bytes_a_sample(
    reports: list[ShardReport], shards: list[Path], encoders: Encoders, recipe: Recipe
) -> dict[str, float]:
    """Mean bytes of a sample's latents, of its captions stored in full and trimmed, and on the disk; {} without
    samples."""
    written = sum(report.written for report in reports)
    if not written:
        return {}
    side = encoders.autoencoder.downscale
    latents = sum(encoders.autoencoder.channels * (px // side) ** 2 for px in recipe.resolutions_px) * HALF_BYTES
    position = encoders.text_encoder.channels * HALF_BYTES
    return {
        "latents": latents,
        "captions full": sum(report.captions for report in reports) * encoders.text_encoder.length * position / written,
        "captions trimmed": sum(report.caption_positions for report in reports) * position / written,
        "on disk": sum(path.stat().st_size for path in shards) / written,
    }
