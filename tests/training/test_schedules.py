"""The learning rate over a run."""

import pytest

from microdit.kinds import SettingsError, check_arguments
from microdit.training.schedules import Constant, Cosine, WarmupStableDecay


def test_warm_up_is_linear_and_cosine_ends_at_its_factor():
    factors = [Cosine(10, 0.33).factor(step, 110) for step in range(111)]
    assert factors[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx((1 + 0.33) / 2)
    assert factors[110] == pytest.approx(0.33)


def test_a_constant_schedule_stays_at_the_peak_after_warm_up():
    assert {Constant(0).factor(step, 100) for step in range(100)} == {1.0}


def test_warm_up_stable_decay_is_at_the_peak_until_its_last_part_and_then_falls_in_a_line():
    factors = [WarmupStableDecay(10, decay_share=0.2, final_factor=0.1).factor(step, 110) for step in range(111)]
    assert factors[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert set(factors[10:91]) == {1.0}
    assert factors[100] == pytest.approx(0.55)
    assert factors[110] == pytest.approx(0.1)


@pytest.mark.parametrize("share", [0.0, -0.2, 1.1])
def test_a_decay_of_no_steps_or_of_more_than_all_is_refused(share):
    with pytest.raises(SettingsError, match=r"schedule\.decay_share must be a number from 0\.0001 to 1"):
        check_arguments(WarmupStableDecay, {"warmup_steps": 10, "decay_share": share, "final_factor": 0.1}, "schedule")
