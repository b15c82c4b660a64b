"""A device is checked before work begins."""

import pytest

from microdit.build import SettingsError
from microdit.commands.messages import check_device


@pytest.mark.parametrize("absent", ["cuda:99", "gpuu"])
def test_a_device_that_is_not_there_is_refused_with_the_one_that_is(absent):
    with pytest.raises(SettingsError, match=f"device={absent} cannot be used here .*device=cpu"):
        check_device(absent)


def test_the_processor_can_always_be_used():
    check_device("cpu")
