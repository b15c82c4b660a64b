"""What changes during training, each as a function of the step: mask ratio, learning rate."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from microdit.build import SettingsError


class MaskRatio(ABC):
    """The share of patches dropped, as a function of how far training is."""

    @abstractmethod
    def ratio(self, progress: float) -> float:
        """The mask ratio, in [0, 1), when `progress` (0 to 1) of the steps are done."""


@dataclass(frozen=True)
class ConstantMaskRatio(MaskRatio):
    """The same mask ratio at every step. Raises SettingsError outside [0, 1)."""

    share: float

    def __post_init__(self) -> None:
        check_share(self.share, "mask_ratio.share")

    def ratio(self, progress: float) -> float:
        return self.share


@dataclass(frozen=True)
class FallingMaskRatio(MaskRatio):
    """A mask ratio that falls from `first` to `last` in `levels` equal stretches (an open question of the paper).

    It falls in levels because each new number of patches costs a compilation where the network is compiled.
    """

    first: float
    last: float
    levels: int

    def __post_init__(self) -> None:
        check_share(self.first, "mask_ratio.first")
        check_share(self.last, "mask_ratio.last")
        if self.levels < 2:
            raise SettingsError(f"mask_ratio.levels must be at least 2 for a ratio that falls, got {self.levels}")

    def ratio(self, progress: float) -> float:
        level = min(int(progress * self.levels), self.levels - 1)
        return self.first + (self.last - self.first) * level / (self.levels - 1)


def check_share(share: float, name: str) -> None:
    """Raises SettingsError when a mask ratio is not in [0, 1)."""
    if not 0 <= share < 1:
        raise SettingsError(f"{name} is the share of patches dropped and must be in [0, 1), got {share}")


def learning_rate_factor(step: int, max_steps: int, warmup_steps: int, schedule: str, final_factor: float) -> float:
    """What the peak learning rate is multiplied with at `step`: linear warm-up, then "constant" or "cosine".

    Cosine falls to `final_factor` at `max_steps` (0.33 in the paper's first stage).
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * progress)) / 2
