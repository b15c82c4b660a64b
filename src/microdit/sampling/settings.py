"""How the pictures of a network are drawn unless somebody says otherwise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from microdit.build import SettingsError, check_names
from microdit.sampling.samplers import MOST_STEPS, SAMPLERS


@dataclass(frozen=True)
class SamplingSettings:
    """`sampler` and its steps; guidance (1: none) and the noise levels [low, high] it is used at, or "all" (as None
    becomes); `temperature` of the noise a picture starts from. SettingsError for what no sampler takes."""

    sampler: str = "heun"
    num_inference_steps: int = 30
    guidance_scale: float = 5.0
    guidance_interval: Sequence[float] | Literal["all"] | None = "all"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_sampling(asdict(self))
        interval = self.guidance_interval
        plain = "all" if interval in (None, "all") else [float(level) for level in interval]
        object.__setattr__(self, "guidance_interval", plain)  # one way to write each

    @property
    def interval(self) -> list[float] | None:
        """The two noise levels, None for all of them."""
        return None if self.guidance_interval in (None, "all") else [float(level) for level in self.guidance_interval]

    def told(self, otherwise: Mapping[str, Any]) -> "SamplingSettings":
        """The same with what `otherwise` says, where that is not None. SettingsError for a name or value there is not,
        of whatever kind."""
        check_names(otherwise, asdict(self), where="sampling")
        values = {**asdict(self), **{name: value for name, value in otherwise.items() if value is not None}}
        check_sampling(values)
        return SamplingSettings(**values)


def check_sampling(values: Mapping[str, Any]) -> None:
    """Raises SettingsError naming the first of the five values that no sampler takes."""
    meant = {
        "sampler": (lambda name: isinstance(name, str) and name in SAMPLERS, f"one of {', '.join(SAMPLERS)}"),
        "num_inference_steps": (
            lambda steps: isinstance(steps, int) and 2 <= steps <= MOST_STEPS,
            f"from 2 to {MOST_STEPS}",
        ),
        "guidance_scale": (is_number, "a number, 1 for no guidance"),
        "guidance_interval": (
            lambda interval: interval is None or interval == "all" or is_interval(interval),
            "two noise levels [low, high], 0 <= low < high, or all",
        ),
        "temperature": (lambda value: is_number(value) and value > 0, "above 0: it scales the noise of the start"),
    }
    for name, (holds, what) in meant.items():
        if not holds(values[name]):
            raise SettingsError(f"{name} is {what}; got {values[name]!r}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_interval(value: Any) -> bool:
    """Whether these are two noise levels, the upper of which may be infinite."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return False
    low, high = value
    return is_number(low) and (is_number(high) or high == math.inf) and 0 <= low < high
