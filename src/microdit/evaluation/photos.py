"""Metrics of models of photographs: distance to true pictures (FID, CLIP-FID, FDD, CMMD), and agreement of picture and
caption (CLIP score).

All ask the captions of a data set of captioned pictures, so all judge the same generated pictures, drawn once.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.multimodal.clip_score import CLIPScore

from microdit.build import build
from microdit.data.sources.captioned import CaptionedImage, EncodedImage, Ignored, Source, Unwanted
from microdit.data.sources.images import square_images
from microdit.evaluation.clip import clip_model_and_processor
from microdit.evaluation.discrepancy import discrepancy
from microdit.evaluation.frechet import Features, as_bytes, frechet_distances
from microdit.evaluation.metric import Metric
from microdit.evaluation.pictures import Pictures, PicturesError
from microdit.evaluation.subject import Count, Sampling, Subject
from microdit.grid import prompt_grid
from microdit.kinds import Weights
from microdit.pipeline import LatentDiffusion

SHOWN = 12


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
        build(self.features, Features, "features")
        check_count(self.source, max(self.count, self.reference_count or 0))

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`fid/NAME OF THE FEATURES`: lower is better; distances of different counts or features cannot be compared."""
        # First: what is missing should not be found out after hours of drawing.
        features: Any = build(self.features, Features, "features")
        metric = FrechetInceptionDistance(features, reset_real_features=False)
        pictures, shown = drawn(subject, self.source, self.count, self.sampling)
        true = centre_squares(captioned(self.source, self.reference_count), shown.shape[-1])
        distance = frechet_distances(metric, {"fid": pictures.batches()}, true, subject.device)["fid"]
        return {f"fid/{features.name}": distance}, prompt_grid(shown, pictures.making.prompts[: len(shown)])


@dataclass(frozen=True)
class PhotoDiscrepancy(PhotoFrechet):
    """CMMD: the maximum mean discrepancy of the same sets of pictures, which also few of them tell well."""

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`cmmd/NAME OF THE FEATURES`: lower is better, 0 for the same distribution, up to sampling."""
        features: Any = build(self.features, Features, "features").to(subject.device).eval()
        pictures, shown = drawn(subject, self.source, self.count, self.sampling)
        true = centre_squares(captioned(self.source, self.reference_count), shown.shape[-1])
        ours, theirs = (
            torch.cat([features(as_bytes(batch).to(subject.device)) for batch in batches])
            for batches in (pictures.batches(64), true)
        )
        grid = prompt_grid(shown, pictures.making.prompts[: len(shown)])
        return {f"cmmd/{features.name}": discrepancy(ours, theirs)}, grid


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
        clip_model_and_processor(self.weights)
        check_count(self.source, self.count)

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`clip_score`: higher is better; scores of different CLIP models cannot be compared."""
        metric = CLIPScore(lambda: clip_model_and_processor(self.weights)).to(subject.device)  # type: ignore[arg-type]
        pictures, shown = drawn(subject, self.source, self.count, self.sampling)
        prompts = iter(pictures.making.prompts)
        for batch in pictures.batches(64):
            metric.update(as_bytes(batch).to(subject.device), list(itertools.islice(prompts, len(batch))))
        grid = prompt_grid(shown, pictures.making.prompts[: len(shown)])
        return {"clip_score": float(metric.compute())}, grid


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


def centre_squares(items: Iterable[CaptionedImage], side_px: int, size: int = 64) -> Iterator[Float[Tensor, "n 3 h w"]]:
    """The centre squares of true pictures at `side_px`, in [0, 1], `size` at a time."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        squares = [torch.from_numpy(square_images(item.image, [side_px])[side_px].copy()) for item in batch]
        yield torch.stack(squares).permute(0, 3, 1, 2).float() / 255
