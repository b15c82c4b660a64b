"""How many steps a run takes, and what each costs, when the mask ratio may change on the way."""

import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

from microdit.cost.flops import kept_tokens, training_flops_per_image
from microdit.kinds import SettingsError
from microdit.masking.ratio import MaskRatio
from microdit.pipeline import LatentDiffusion

COUNTED = 100_000


class StepCosts:
    """FLOPs of a run's steps. `flops_per_image` counts those of one image at a mask ratio."""

    def __init__(self, flops_per_image: Callable[[float], int], mask_ratio: MaskRatio, global_batch_size: int):
        self.flops_per_image = cache(flops_per_image)
        self.mask_ratio, self.global_batch_size = mask_ratio, global_batch_size

    def after(self, step: int, max_steps: int) -> int:
        """FLOPs of the first `step` steps of a run of `max_steps`: of more than COUNTED steps in as many stretches, in
        each of which the mask ratio is taken for that of its first step."""
        images: dict[float, int] = {}
        stretches = min(step, COUNTED)
        starts = [number * step // stretches for number in range(stretches)]
        for start, end in itertools.pairwise([*starts, step]):
            ratio = self.mask_ratio.ratio(start / max_steps)
            images[ratio] = images.get(ratio, 0) + (end - start) * self.global_batch_size
        return sum(number * self.flops_per_image(ratio) for ratio, number in images.items())

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


def step_costs(pipeline: LatentDiffusion, mask_ratio: MaskRatio, global_batch_size: int) -> StepCosts:
    """The costs of a pipeline's training, counted on its network."""
    length = pipeline.text_encoder.length
    return StepCosts(lambda ratio: training_flops_per_image(pipeline.dit, ratio, length), mask_ratio, global_batch_size)


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
