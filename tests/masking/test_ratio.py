"""The mask ratio over a run."""

import pytest

from microdit.kinds import SettingsError, check_arguments
from microdit.masking.ratio import ConstantMaskRatio, FallingMaskRatio


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
    with pytest.raises(SettingsError, match=r"mask_ratio\.share must be a number from 0 to 0\.9999"):
        check_arguments(ConstantMaskRatio, {"share": share}, "mask_ratio")
    with pytest.raises(SettingsError, match=r"mask_ratio\.first must be a number from 0 to 0\.9999"):
        check_arguments(FallingMaskRatio, {"first": share, "last": 0.0, "levels": 4}, "mask_ratio")
