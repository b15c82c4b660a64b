"""Metrics of models of photographs: distance to true pictures (FID, CLIP-FID, FDD, CMMD), and agreement of picture and
caption (CLIP score).

All ask the captions of a data set of captioned pictures, so all judge the same generated pictures, drawn once.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchmetrics.multimodal.clip_score import CLIPScore

from microdit.build import build
from microdit.data.sources.captioned import CaptionedImage, EncodedImage, Ignored, Source, Unwanted
from microdit.data.sources.images import square_images
from microdit.evaluation.clip import ClipModel, ClipProcessor, clip_model_and_processor
from microdit.evaluation.discrepancy import discrepancy
from microdit.evaluation.frechet import Features, Moments, as_bytes, frechet_distance, moments_of
from microdit.evaluation.metric import Metric, built_part
from microdit.evaluation.pictures import Pictures, PicturesError
from microdit.evaluation.reference import of_true_pictures
from microdit.evaluation.subject import Count, Sampling, Subject
from microdit.grid import prompt_grid
from microdit.kinds import Weights
from microdit.pipeline import LatentDiffusion

SHOWN, AT_ONCE = 12, 64


@dataclass(frozen=True)
class PhotoFrechet(Metric):
    """Frechet distance: pictures of the first `count` captions of `source` against its first `reference_count` pictures
    (None: all). `source`: settings of a microdit.data.sources class.

    `features`: settings of the feature network: `InceptionFeatures` (FID), `OpenClipFeatures` (CLIP-FID),
    `DinoFeatures` (FDD), or another `Features`.
    """

    source: Mapping[str, Any]
    count: Count
    reference_count: Count | None
    features: Mapping[str, Any]
    sampling: Sampling

    def ask(self, pipeline: LatentDiffusion) -> None:
        super().ask(pipeline)
        built_part(self, "features", Features)
        check_count(self.source, max(self.count, self.reference_count or 0))

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`fid/NAME OF THE FEATURES`: lower is better; distances of different counts or features cannot be compared."""
        # First: what is missing should not be found out after hours of drawing.
        network: Any = built_part(self, "features", Features).to(subject.device).eval()
        pictures, shown = drawn(subject, self.source, self.count, self.sampling)
        ours = moments_of(features_of(subject, network, pictures))
        d, true = network.num_features, TruePictures(self.source, self.reference_count, shown.shape[-1])

        def made() -> dict[str, Tensor]:
            theirs = moments_of(true.features(subject, network))
            return {"total": theirs.total, "outer": theirs.outer, "count": torch.tensor([theirs.count])}

        about, shapes = {**true.about, "what": "moments"}, {"total": (d,), "outer": (d, d), "count": (1,)}
        kept = of_true_pictures(subject, true.opened, network, about, made, shapes)
        distance = frechet_distance(Moments(kept["total"].double(), kept["outer"].double(), int(kept["count"])), ours)
        return {f"fid/{network.name}": distance}, prompt_grid(shown, pictures.making.prompts[: len(shown)])


@dataclass(frozen=True)
class PhotoDiscrepancy(PhotoFrechet):
    """CMMD: the maximum mean discrepancy of the same sets of pictures, which also few of them tell well."""

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`cmmd/NAME OF THE FEATURES`: lower is better, 0 for the same distribution, up to sampling."""
        network: Any = built_part(self, "features", Features).to(subject.device).eval()
        pictures, shown = drawn(subject, self.source, self.count, self.sampling)
        ours = torch.cat(features_of(subject, network, pictures))
        true = TruePictures(self.source, self.reference_count, shown.shape[-1])

        def made() -> dict[str, Tensor]:
            return {"features": torch.cat(true.features(subject, network))}

        about, shapes = {**true.about, "what": "features"}, {"features": (None, network.num_features)}
        theirs = of_true_pictures(subject, true.opened, network, about, made, shapes)["features"]
        grid = prompt_grid(shown, pictures.making.prompts[: len(shown)])
        return {f"cmmd/{network.name}": discrepancy(ours, theirs.to(ours))}, grid


@dataclass(frozen=True)
class PhotoClipScore(Metric):
    """CLIP score: 100 times the cosine between pictures and the first `count` captions of `source`, mean over them.

    `weights`: an open_clip model, "hf-hub:owner/name" or a local folder, read when evaluated.
    """

    source: Mapping[str, Any]
    count: Count
    weights: Weights
    sampling: Sampling

    def ask(self, pipeline: LatentDiffusion) -> None:
        super().ask(pipeline)
        self.clip()
        check_count(self.source, self.count)

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`clip_score`: higher is better; scores of different CLIP models cannot be compared."""
        metric = CLIPScore(self.clip).to(subject.device)  # type: ignore[arg-type]
        pictures, shown = drawn(subject, self.source, self.count, self.sampling)

        prompts = iter(pictures.making.prompts)
        batches = ((batch, list(itertools.islice(prompts, len(batch)))) for batch in pictures.in_batches(AT_ONCE))

        def scored(batch: tuple[list[CaptionedImage], list[str]]) -> float:
            metric.reset()
            metric.update(as_bytes(pictures.opened(batch[0])).to(subject.device), batch[1])
            return float(metric.score)  # their sum; `compute` would ask the other ranks for theirs

        mean = sum(subject.each(batches, scored, -(-pictures.count // AT_ONCE), "CLIP score")) / pictures.count
        grid = prompt_grid(shown, pictures.making.prompts[: len(shown)])
        return {"clip_score": max(0.0, mean)}, grid

    def clip(self) -> tuple[ClipModel, ClipProcessor]:
        return clip_model_and_processor(self.weights, f"{self.option}.weights")


def check_count(source: Mapping[str, Any], count: int) -> None:
    """Raises PicturesError where a source is known to hold fewer pictures before any is read, or cannot be opened."""
    opened = build(source, Source)
    opened.shards()
    known = opened.keys()
    if known is not None and len(known) < count:
        raise PicturesError(f"{dict(source)} holds {len(known)} pictures, not {count}: set count lower")


def drawn(
    subject: Subject, source: Mapping[str, Any], count: int, sampling: Mapping[str, Any]
) -> tuple[Pictures, Float[Tensor, "n 3 h w"]]:
    """Pictures of the first `count` captions, the same for every metric of `source`, and the first few to show."""
    captions = [each.captions[0] for each in captioned(source, count)]
    if len(captions) < count:
        raise PicturesError(f"{dict(source)} holds {len(captions)} captioned pictures, not {count}: set count lower")
    pictures = subject.pictures("captions", captions, sampling)
    return pictures, next(pictures.batches(SHOWN))


def captioned(source: Mapping[str, Any], count: int | None) -> Iterator[CaptionedImage]:
    """The first `count` captioned pictures of a source (None: all). Raises PicturesError at one that cannot be read."""
    opened = build(source, Source)
    read = (item for shard in range(len(opened.shards())) for item in opened.read(shard))
    found = (item for item in read if not isinstance(item, Ignored | Unwanted))
    for item in itertools.islice(found, count):
        if isinstance(item, EncodedImage):
            raise PicturesError(f"{dict(source)}: {item.key} is encoded already, and pictures are asked for")
        if not isinstance(item, CaptionedImage):
            raise PicturesError(f"{dict(source)}: {item.key}: {item.reason}. Remove it: all of a set must be judged")
        yield item


@dataclass(frozen=True)
class TruePictures:
    """The centre squares of the first `count` pictures of a source (None: all), at the size of those that are drawn."""

    source: Mapping[str, Any]
    count: int | None
    side_px: int

    @property
    def opened(self) -> Source:
        return build(self.source, Source)

    @property
    def about(self) -> dict[str, Any]:
        """What their features depend on, beside the source."""
        return {"count": self.count, "side_px": self.side_px}

    def features(self, subject: Subject, network: Features) -> list[Float[Tensor, "n d"]]:
        def worked(batch: list[CaptionedImage]) -> Float[Tensor, "n d"]:
            squares = np.stack([square_images(item.image, [self.side_px])[self.side_px] for item in batch])
            pictures = torch.from_numpy(squares).permute(0, 3, 1, 2)
            return network(pictures.to(subject.device)).cpu()

        total = None if self.count is None else -(-self.count // AT_ONCE)
        return subject.each(self.batches(), worked, total, f"{network.name} of true pictures")

    def batches(self) -> Iterator[list[CaptionedImage]]:
        items = captioned(self.source, self.count)
        while batch := list(itertools.islice(items, AT_ONCE)):
            yield batch


def features_of(subject: Subject, network: Features, pictures: Pictures) -> list[Float[Tensor, "n d"]]:
    """Features of generated pictures in batches, in their order, on every rank."""

    def worked(batch: list[CaptionedImage]) -> Float[Tensor, "n d"]:
        return network(as_bytes(pictures.opened(batch)).to(subject.device)).cpu()

    total = -(-pictures.count // AT_ONCE)
    return subject.each(pictures.in_batches(AT_ONCE), worked, total, f"{network.name} of drawn pictures")
