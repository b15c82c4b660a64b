import math
from dataclasses import asdict

import pytest

from microdit.build import SettingsError
from microdit.sampling.settings import SamplingSettings

SHORT = SamplingSettings("dpm_solver_2m", 16, 3.0, [1, 80], 0.6)


def test_what_is_not_told_stays_as_it_was():
    told = SHORT.told({"guidance_scale": 2.0, "sampler": None, "temperature": None})
    assert asdict(told) == {**asdict(SHORT), "guidance_scale": 2.0}
    assert SHORT.told({}) == SHORT


def test_an_interval_gives_way_to_all_noise_levels_by_name_only():
    assert SHORT.told({"guidance_interval": None}).interval == [1.0, 80.0]
    assert SHORT.told({"guidance_interval": "all"}).interval is None
    assert SamplingSettings(guidance_interval=None) == SamplingSettings(guidance_interval="all")


def test_what_was_written_is_read_back():
    for settings in (SHORT, SamplingSettings(), SHORT.told({"guidance_interval": "all"})):
        assert SamplingSettings().told(asdict(settings)) == settings


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "sampler": ["euler", 3, ["heun"]],
        "num_inference_steps": [1, 10_001, 2.5, "30", [30]],
        "guidance_scale": ["high", math.nan, math.inf, [3.0], True],
        "guidance_interval": [[1.0], [2.0, 1.0], [-1, 3], "some", 3.0, ["0", "1"], [math.nan, 1.0], {"low": 1}],
        "guidance": ["autoguidance", "none", 3.0],
        "quality": [1.5, -0.1, math.nan, "good", True],
        "temperature": [0, -0.5, math.nan, math.inf, "warm", [1.0]],
    }.items(),
)
def test_what_no_sampler_takes_is_refused_by_name(name, values):
    for value in values:
        with pytest.raises(SettingsError, match=name):
            SamplingSettings().told({name: value})


def test_settings_made_by_hand_are_checked_too():
    with pytest.raises(SettingsError, match=r"sampling\.temperature must be a number from 1e-30 .* got 0\.0"):
        SamplingSettings(temperature=0.0)


def test_a_misspelt_setting_is_refused_with_its_neighbour():
    with pytest.raises(SettingsError, match="did you mean 'guidance_scale'"):
        SamplingSettings().told({"guidance_scal": 3.0})
