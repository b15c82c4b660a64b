"""How the pictures of a network are drawn unless somebody says otherwise."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from microdit.kinds import Limits, OneOf, Positive, SettingsError, check_arguments
from microdit.sampling.guidance import AUTOGUIDANCE, GUIDANCE
from microdit.sampling.samplers import MOST_STEPS, SAMPLERS

SamplerName = Annotated[str, OneOf(tuple(SAMPLERS))]
SamplingSteps = Annotated[int, Limits(2, MOST_STEPS)]
GuidanceName = Annotated[str, OneOf(tuple(GUIDANCE))]
AnyGuidanceName = Annotated[str, OneOf((*GUIDANCE, AUTOGUIDANCE))]
Quality = Annotated[float, Limits(0, 1)]
GuidanceInterval = Annotated[Sequence[float], Limits(2, 2)] | Literal["all"]


@dataclass(frozen=True)
class SamplingSettings:
    """`sampler` and its steps; guidance (1: none) and the noise levels [low, high] it is used at, or "all" (as None
    becomes); `temperature` of the noise a picture starts from; `guidance`: away from what; `quality`, from 0 to 1, that
    pictures are asked for where the network reads one, None for none.
    SettingsError for what no sampler takes."""

    sampler: SamplerName = "heun"
    num_inference_steps: SamplingSteps = 30
    guidance_scale: float = 5.0
    guidance_interval: GuidanceInterval | None = "all"
    temperature: Positive = 1.0
    guidance: GuidanceName = "captions"
    quality: Quality | None = None

    def __post_init__(self) -> None:
        check_arguments(SamplingSettings, asdict(self), "sampling")
        levels = self.interval
        if levels is not None and not 0 <= levels[0] < levels[1]:
            raise SettingsError(f"sampling.guidance_interval is [low, high] with 0 <= low < high, or all; got {levels}")
        object.__setattr__(self, "guidance_interval", "all" if levels is None else levels)  # one way to write each

    @property
    def interval(self) -> list[float] | None:
        """The two noise levels, None for all of them."""
        interval = self.guidance_interval
        return None if interval is None or isinstance(interval, str) else [float(level) for level in interval]

    def told(self, otherwise: Mapping[str, Any]) -> "SamplingSettings":
        """The same with what `otherwise` says, where that is not None. SettingsError for a name or value there is not,
        of whatever kind."""
        given = {name: value for name, value in otherwise.items() if value is not None}
        check_arguments(SamplingSettings, given, "sampling")
        return SamplingSettings(**{**asdict(self), **given})
