"""How many patches are dropped, as a function of how far training is."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from microdit.kinds import Limits, Share


class MaskRatio(ABC):
    """The share of patches dropped, as a function of how far training is."""

    @abstractmethod
    def ratio(self, progress: float) -> float:
        """The mask ratio, in [0, 1), when `progress` (0 to 1) of the steps are done."""


@dataclass(frozen=True)
class ConstantMaskRatio(MaskRatio):
    """The same mask ratio at every step."""

    share: Share

    def ratio(self, progress: float) -> float:
        return self.share


@dataclass(frozen=True)
class FallingMaskRatio(MaskRatio):
    """A mask ratio that falls from `first` to `last` in `levels` equal stretches (an open question of the paper).

    It falls in levels because each new number of patches costs a compilation where the network is compiled.
    """

    first: Share
    last: Share
    levels: Annotated[int, Limits(2, 100)]

    def ratio(self, progress: float) -> float:
        level = min(int(progress * self.levels), self.levels - 1)
        return self.first + (self.last - self.first) * level / (self.levels - 1)
