"""The learning rate over a run: linear warm-up to its peak, then as the schedule says."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

from microdit.kinds import Limits


@dataclass(frozen=True)
class Schedule(ABC):
    """What the peak learning rate is multiplied with at each step. Chosen by one file in `conf/schedule/`."""

    warmup_steps: Annotated[int, Limits(0, 10**9)]

    def factor(self, step: int, max_steps: int) -> float:
        """Linear warm-up, then what the schedule says of the steps that remain."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        return self.after_warmup(min(1.0, (step - self.warmup_steps) / max(1, max_steps - self.warmup_steps)))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """The factor when `progress` (0 to 1) of the steps after the warm-up are done."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak, to the end."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from the peak to `final_factor` of it at the last step."""

    final_factor: float

    def after_warmup(self, progress: float) -> float:
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """The peak, and in the last `decay_share` of the steps linearly to `final_factor` of it (Hu et al. 2024)."""

    decay_share: Annotated[float, Limits(0.0001, 1)]
    final_factor: float

    def after_warmup(self, progress: float) -> float:
        decayed = max(0.0, (progress - (1 - self.decay_share)) / self.decay_share)
        return 1 - (1 - self.final_factor) * decayed
