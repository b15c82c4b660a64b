"""How many steps a run takes, and what each costs, when the mask ratio may change on the way."""

import itertools
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from microdit.cost.flops import kept_tokens, training_flops_per_image
from microdit.kinds import SettingsError
from microdit.masking.ratio import MaskRatio
from microdit.pipeline import LatentDiffusion

COUNTED = 100_000


class StepCosts:
    """FLOPs of a run's steps. `flops_per_image` counts those of one image at a mask ratio, `beside` those of what else
    is learned from it, when so much of the steps is done."""

    def __init__(
        self,
        flops_per_image: Callable[[float], int],
        mask_ratio: MaskRatio,
        global_batch_size: int,
        beside: Callable[[float], int] = lambda progress: 0,
    ):
        self.flops_per_image, self.beside = cache(flops_per_image), beside
        self.mask_ratio, self.global_batch_size = mask_ratio, global_batch_size

    def at(self, progress: float) -> int:
        """FLOPs of one image when `progress` (0 to 1) of the steps are done."""
        return self.flops_per_image(self.mask_ratio.ratio(progress)) + self.beside(progress)

    def after(self, step: int, max_steps: int) -> int:
        """FLOPs of the first `step` steps of a run of `max_steps`: of more than COUNTED steps in as many stretches, in
        each of which an image costs what it costs in its first step."""
        stretches = min(step, COUNTED)
        starts = [number * step // stretches for number in range(stretches)]
        stretched = itertools.pairwise([*starts, step])
        return sum((end - start) * self.global_batch_size * self.at(start / max_steps) for start, end in stretched)

    def steps(self, max_steps: int, max_flops: float | None) -> int:
        """The steps of a run that ends at `max_steps` or before it would pass `max_flops`.

        The mask ratio's schedule is stretched or shortened to the steps that result. Raises SettingsError when the
        budget does not pay for one step.
        """
        if max_flops is None or self.after(max_steps, max_steps) <= max_flops:
            return max_steps
        low, high = 0, max_steps  # the longest run within the budget is in [low, high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.after(middle, middle) <= max_flops else (low, middle)
        if low == 0:
            raise SettingsError(
                f"trainer.max_flops={max_flops:.3g} does not pay for one step, which costs {self.after(1, 1):.3g}"
            )
        return low


def step_costs(
    pipeline: LatentDiffusion,
    mask_ratio: MaskRatio,
    global_batch_size: int,
    beside: Callable[[float], int] = lambda progress: 0,
    shares: Mapping[tuple[int, ...], float] | None = None,
) -> StepCosts:
    """The costs of a pipeline's training, counted on its network, and of what is learned `beside`. `shares`: of the
    shapes that latents have in the mix; None: all have that of training."""
    length = pipeline.text_encoder.length

    def of_the_network(ratio: float) -> int:
        return training_flops_per_image(pipeline.dit, ratio, length, shares)

    return StepCosts(of_the_network, mask_ratio, global_batch_size, beside)


def total_cost(costs: StepCosts, max_steps: int, pipeline: LatentDiffusion) -> dict[str, Any]:
    """Parameters, patches the backbone sees at first, and the FLOPs of a whole run: an image's mean, and all."""
    kept, patches = kept_tokens(pipeline.dit, costs.mask_ratio.ratio(0.0))
    total = costs.after(max_steps, max_steps)
    return {
        "parameters": sum(p.numel() for p in pipeline.dit.parameters()),
        "patches": patches,
        "patches_kept": kept,
        "flops_per_image": round(total / (max_steps * costs.global_batch_size)),
        "total_flops": total,
    }
