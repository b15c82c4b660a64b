"""What is said about a command line that cannot be composed, without a process for each."""

from pathlib import Path

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from microdit.build import SettingsError
from microdit.commands.compose import composition_message, run_folder

CONF = str(Path(__file__).parents[2] / "conf")


def message(*overrides: str) -> str:
    with hydra.initialize_config_dir(CONF, version_base="1.3"):

        def default_config() -> DictConfig:
            return hydra.compose("config")

        with pytest.raises(HydraException) as error:
            hydra.compose("config", list(overrides))
        return composition_message(error.value, default_config)


def test_a_misspelt_key_is_told_with_those_of_the_choice_that_was_made():
    told = message("masking=maskdit", "masking.reconstruction_wait=0.2")
    assert "masking has no setting 'reconstruction_wait'; did you mean 'reconstruction_weight'" in told
    assert "decoder_depth_ratio" in told


def test_a_misspelt_group_is_told_with_the_groups_there_are():
    told = message("maskin.block_size=2")
    assert "the configuration has no setting 'maskin'; did you mean 'masking'" in told
    assert "hydra" not in told


def test_a_misspelt_choice_is_told_with_the_nearest_and_all_there_are():
    told = message("+experiment=deferred_mask75")
    assert "experiment has no choice 'deferred_mask75'; did you mean 'deferred_mask_75'? It knows: " in told
    assert "naive_mask_75" in told
    assert "masking has no choice 'zzz'. It knows: deferred, maskdit, naive" in message("masking=zzz")


@pytest.mark.parametrize("bundle", ["scale=tiny", "experiment=no_mask", "recipe=modern"])
def test_a_bundle_without_its_plus_is_told_to_want_one(bundle):
    name = bundle.partition("=")[0]
    assert message(bundle) == f"{name} is a bundle, added with a plus: +{name}=CHOICE"


def test_a_value_has_no_settings_below_it():
    assert "seed is a single value" in message("seed.first=2")


def test_a_run_to_resume_that_is_not_there_is_told_in_our_words(tmp_path):
    config = OmegaConf.create({"folder": f"${{run_folder:{tmp_path}/absent,runs,new}}"})
    with pytest.raises(OmegaConfBaseException) as error:
        OmegaConf.to_container(config, resolve=True)
    told = composition_message(error.value, lambda: config)
    assert told.startswith(f"resume={tmp_path}/absent: no such run or checkpoint")
    assert "full_key" not in told


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path):
    with pytest.raises(SettingsError, match="that is no run"):
        run_folder(str(tmp_path), "runs", "new")
