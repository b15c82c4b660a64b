"""Frechet distance between generated and true scenes, by the features of `shapes_features.py`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from microdit.data.shapes import Sample
from microdit.evaluation.frechet import Moments, as_bytes, frechet_distance, moments_of
from microdit.evaluation.metric import Metric
from microdit.evaluation.shapes.features import VERSION, shapes_features
from microdit.evaluation.shapes.scenes import AT_ONCE, held_out_scenes, rendered
from microdit.evaluation.sharing import batches_of
from microdit.evaluation.subject import Count, Domains, Sampling, Subject, Unit
from microdit.grid import prompt_grid

SHOWN = 24


@dataclass(frozen=True)
class ShapesFrechet(Metric):
    """Draws `count` held-out captions, as common as they are in the data, and compares with `reference_count` true
    scenes that have other captions.

    The distance of finite samples is above zero even between true scenes, and falls as `count` grows: compare equal
    counts only. `frechet_VERSION/true_scenes` is what a perfect model of this count would reach.
    """

    domains: Domains
    count: Count
    reference_count: Count
    sampling: Sampling

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`frechet_VERSION/distance` and `frechet_VERSION/true_scenes`, the features' version in their names."""
        asked = held_out_scenes(self.domains, range(self.count))
        captions = [each.caption for each in asked]
        pictures = subject.pictures("scenes", captions, self.sampling)
        shown = next(pictures.batches(SHOWN))
        side_px = shown.shape[-1]
        references = held_out_scenes(self.domains, range(self.count, self.count + self.reference_count))
        network = shapes_features().to(subject.device).eval()

        @torch.no_grad()
        def moments(
            units: Iterable[Unit], opened: Callable[[Unit], Float[Tensor, "n 3 h w"]], total: int, what: str
        ) -> Moments:
            def worked(unit: Unit) -> Float[Tensor, "n d"]:
                return network(as_bytes(opened(unit)).to(subject.device)).cpu()

            return moments_of(subject.each(units, worked, total, f"features of {what}"))

        def true(scenes: Sequence[Sample]) -> Moments:
            batches = [scenes[batch.start : batch.stop] for batch in batches_of(len(scenes), AT_ONCE)]
            return moments(batches, lambda batch: next(iter(rendered(batch, side_px))), len(batches), "true scenes")

        count = -(-pictures.count // AT_ONCE)
        drawn, of_references = moments(pictures.in_batches(AT_ONCE), pictures.opened, count, "scenes"), true(references)
        numbers = {
            "distance": frechet_distance(of_references, drawn),
            "true_scenes": frechet_distance(of_references, true(asked)),
        }
        grid = prompt_grid(shown, captions[: len(shown)])
        return {f"frechet_{VERSION}/{name}": value for name, value in numbers.items()}, grid
