"""What came of a preparation: shard by shard, and the closing count with the index and the description of the whole."""

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import LARGEST_REPORT, PLAN_NAME, Recipe
from microdit.data.shards.description import DESCRIPTION_NAME, LatentDescription, write_description
from microdit.data.shards.index import PARTS_FOLDER, merge_folder
from microdit.data.sources.images import FilteredImageError
from microdit.files import alone_in, read_described, write_whole

REJECTS_NAME = "rejects.csv"
HALF_BYTES = 2


@dataclass
class ShardReport:
    """What became of one input shard. `caption_positions`: up to the end of the text. `rejects`: key, kind, reason."""

    input: str
    read: int = 0
    written: int = 0
    captions: int = 0
    caption_positions: int = 0
    rejects: list[list[str]] = field(default_factory=list)

    def reject(self, key: str, error: Exception) -> None:
        """Enter a picture that does not become a sample, as "filtered" or "broken"."""
        self.rejects.append([key, "filtered" if isinstance(error, FilteredImageError) else "broken", str(error)])


@dataclass(frozen=True)
class Summary:
    """The closing count. `missing`: output shards still to be written by other jobs. `images`: read by this job, just
    now."""

    folder: Path
    written: int
    filtered: int
    broken: int
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
            f"{self.folder}: {self.written} written, {self.filtered} filtered, {self.broken} broken, {self.shards} "
            f"shards{speed}"
        ]
        if self.filtered + self.broken and not self.missing:
            lines.append(f"why: {self.folder / REJECTS_NAME}")
        if self.missing:
            lines.append(
                f"{self.missing} shards are still to be written by other jobs; the last one to end writes the index"
            )
        if self.bytes_a_sample:
            lines.append(
                "bytes a sample: " + ", ".join(f"{name} {value:,.0f}" for name, value in self.bytes_a_sample.items())
            )
        return "\n".join(lines)


def report_path(shard: Path) -> Path:
    """Where the report of one output shard is kept."""
    return shard.parent / PARTS_FOLDER / f"{shard.stem}.json"


def write_report(shard: Path, report: ShardReport) -> None:
    """Keep the report of one output shard."""
    write_whole(report_path(shard), json.dumps(asdict(report), ensure_ascii=False, indent=1) + "\n")


def read_report(shard: Path) -> ShardReport:
    """The report of one output shard. DamagedFileError for what is none."""
    cure = f"remove {shard} and run the same command again"
    return read_described(report_path(shard), ShardReport, cure, LARGEST_REPORT)


def finish(folder: Path, shards: int, encoders: Encoders, recipe: Recipe, images: int, seconds: float) -> Summary:
    """Count, and if every output shard is there, write the index, `rejects.csv` and `dataset.json`, once."""
    paths = [folder / f"{number:05d}.tar" for number in range(shards)]
    there = [path for path in paths if path.exists()]
    reports = [read_report(path) for path in there]
    kinds = [reject[1] for report in reports for reject in report.rejects if len(reject) > 1]
    written = sum(report.written for report in reports)
    sizes = bytes_a_sample(reports, there, encoders, recipe)
    counts = {"written": written, "filtered": kinds.count("filtered"), "broken": kinds.count("broken")}
    description = folder / DESCRIPTION_NAME
    newest = max((path.stat().st_mtime_ns for path in there), default=0)
    if len(there) == shards and not (description.exists() and description.stat().st_mtime_ns > newest):
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
                    samples=written,
                    shards=shards,
                    counts=counts,
                    bytes_a_sample=sizes,
                    source=json.loads((folder / PLAN_NAME).read_text(encoding="utf-8"))["source"],
                    autoencoder_settings=dict(encoders.autoencoder_settings),
                    text_encoder_settings=dict(encoders.text_encoder_settings),
                ),
            )
    return Summary(
        folder=folder,
        **counts,
        shards=shards,
        missing=shards - len(there),
        images=images,
        seconds=seconds,
        bytes_a_sample=sizes,
    )


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
