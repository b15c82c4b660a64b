"""Frechet distance between generated and true scenes, by the features of `shapes_features.py`."""

from dataclasses import dataclass

from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from microdit.evaluation.frechet import frechet_distances
from microdit.evaluation.metric import Metric
from microdit.evaluation.shapes.features import VERSION, shapes_features
from microdit.evaluation.shapes.scenes import held_out_scenes, rendered
from microdit.evaluation.subject import Count, Domains, Sampling, Subject
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
        numbers = frechet_distances(
            shapes_frechet_metric(),
            {"distance": pictures.batches(), "true_scenes": rendered(asked, side_px)},
            rendered(references, side_px),
            subject.device,
        )
        grid = prompt_grid(shown, captions[: len(shown)])
        return {f"frechet_{VERSION}/{name}": value for name, value in numbers.items()}, grid


def shapes_frechet_metric() -> FrechetInceptionDistance:
    """torchmetrics' distance with the features for shapes; it takes bytes and keeps its references when reset."""
    return FrechetInceptionDistance(shapes_features(), reset_real_features=False)
