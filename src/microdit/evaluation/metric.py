"""What every metric is: something that looks at a trained pipeline, or at pictures it drew, and returns numbers."""

from abc import ABC, abstractmethod

from PIL import Image

from microdit.evaluation.subject import Subject


class Metric(ABC):
    """A measurement of a trained pipeline, chosen by `conf/metrics/`."""

    @abstractmethod
    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image | None]:
        """Named numbers for result.json, and a picture of what was judged where there is one to show."""
