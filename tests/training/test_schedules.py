"""Mask ratio and learning rate over a run."""

import pytest

from microdit.build import SettingsError
from microdit.training.schedules import ConstantMaskRatio, FallingMaskRatio, learning_rate_factor


def test_a_constant_ratio_never_changes():
    assert {ConstantMaskRatio(0.75).ratio(p / 10) for p in range(11)} == {0.75}


def test_a_falling_ratio_goes_from_first_to_last_in_levels():
    schedule = FallingMaskRatio(first=0.75, last=0.0, levels=4)
    ratios = [schedule.ratio(p / 100) for p in range(101)]
    assert (ratios[0], ratios[-1]) == (0.75, 0.0)
    assert ratios == sorted(ratios, reverse=True)
    assert len(set(ratios)) == 4


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_a_ratio_outside_its_range_is_refused_at_once(share):
    with pytest.raises(SettingsError, match=r"\[0, 1\)"):
        ConstantMaskRatio(share)
    with pytest.raises(SettingsError, match=r"\[0, 1\)"):
        FallingMaskRatio(first=share, last=0.0, levels=4)


def test_warm_up_is_linear_and_cosine_ends_at_its_factor():
    factors = [learning_rate_factor(s, 110, 10, "cosine", 0.33) for s in range(111)]
    assert factors[:10] == [pytest.approx((s + 1) / 10) for s in range(10)]
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx((1 + 0.33) / 2)
    assert factors[110] == pytest.approx(0.33)


def test_a_constant_schedule_stays_at_the_peak_after_warm_up():
    assert {learning_rate_factor(s, 100, 0, "constant", 0.33) for s in range(100)} == {1.0}
