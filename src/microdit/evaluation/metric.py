"""What every metric is: something that looks at a pipeline and returns named numbers."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from PIL import Image

from microdit.pipeline import LatentDiffusion

Report = Callable[[int, int], None]  # (done, total) evaluations of the network


class Metric(ABC):
    """A measurement of a trained pipeline, chosen by `conf/metrics/`."""

    @abstractmethod
    def evaluate(self, pipeline: LatentDiffusion, progress: Report) -> tuple[dict[str, float], Image.Image | None]:
        """Named numbers for result.json, and a picture of what was judged where there is one to show."""
