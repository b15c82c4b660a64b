"""A run may end by FLOPs."""

import pytest

from microdit.build import SettingsError
from microdit.cost.budget import StepCosts
from microdit.masking.ratio import ConstantMaskRatio, FallingMaskRatio


def test_constant_steps_fit_the_budget_to_the_last():
    costs = StepCosts(lambda ratio: 100, ConstantMaskRatio(0.5), global_batch_size=4)
    assert costs.steps(1000, None) == 1000
    assert costs.steps(1000, 400 * 7) == 7
    assert costs.steps(1000, 400 * 8 - 1) == 7
    assert costs.steps(5, 1e9) == 5
    assert costs.after(3, 7) == 1200


def test_a_falling_ratio_is_paid_for_level_by_level():
    costs = StepCosts(lambda ratio: round(100 * (1 - ratio)), FallingMaskRatio(0.75, 0.0, 4), global_batch_size=1)
    assert costs.after(8, 8) == 2 * (25 + 50 + 75 + 100)
    steps = costs.steps(1000, 500)
    assert costs.after(steps, steps) <= 500 < costs.after(steps + 1, steps + 1)


def test_a_budget_below_one_step_is_refused():
    costs = StepCosts(lambda ratio: 100, ConstantMaskRatio(0.5), global_batch_size=4)
    with pytest.raises(SettingsError, match=r"max_flops=399 does not pay for one step, which costs 400"):
        costs.steps(10, 399)


def test_as_many_steps_as_there_may_be_are_counted_in_stretches():
    costs = StepCosts(lambda ratio: round(100 * (1 - ratio)), FallingMaskRatio(0.75, 0.0, 4), global_batch_size=1)
    assert costs.after(10**9, 10**9) == pytest.approx(10**9 * (25 + 50 + 75 + 100) / 4, rel=1e-4)
