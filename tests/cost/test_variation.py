"""What an experiment changes relative to the size of the network, at every size."""

from pathlib import Path

import pytest
import yaml

from microdit.build import SettingsError
from microdit.cost.flops import training_flops_per_image
from microdit.cost.variation import DEFERRED, Inputs, VariationSettings, network_on_meta, varied_model
from microdit.training.settings import bind

CONF = Path(__file__).parents[2] / "conf"
INPUTS = {"nano": Inputs(32, 3, 24, 64), "tiny": Inputs(32, 4, 77, 1024), "xl": Inputs(32, 4, 77, 1024)}
UNMASKED = {"_target_": "microdit.masking.none.Unmasked"}
NAIVE = {"_target_": "microdit.masking.naive.Naive"}
EXPERTS = yaml.safe_load((CONF / "moe" / "expert_choice.yaml").read_text())


def model(name: str) -> dict:
    return yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())


def varied(name: str, masking=DEFERRED, mask_ratio=0.75, **variation) -> dict:
    return varied_model(model(name), EXPERTS, masking, mask_ratio, lambda: INPUTS[name], VariationSettings(**variation))


def flops(name: str, settings: dict, masking: dict, mask_ratio: float) -> int:
    network = network_on_meta(settings, EXPERTS, masking, INPUTS[name])
    return training_flops_per_image(network, mask_ratio, INPUTS[name].caption_length)


@pytest.mark.parametrize("name", INPUTS)
def test_no_variation_changes_nothing(name):
    assert varied(name) == model(name)


# The smaller a network, the coarser its sizes: nano has 4 heads in each of 4 blocks.
@pytest.mark.parametrize(("name", "off"), [("nano", 0.09), ("tiny", 0.02)])
@pytest.mark.parametrize("patch_size", [2, 4])
def test_an_unmasked_network_is_made_as_cheap_as_deferred_masking(name, off, patch_size):
    settings = varied(name, UNMASKED, 0.0, patch_size=patch_size, equal_flops_mask_ratio=0.75)
    wanted = flops(name, model(name), DEFERRED, 0.75)
    assert flops(name, settings, UNMASKED, 0.0) == pytest.approx(wanted, rel=off)
    assert settings["patch_size"] == patch_size
    assert (settings["dim"] < model(name)["dim"]) == (patch_size == 2)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("masking", [DEFERRED, NAIVE], ids=["deferred", "naive"])
def test_blocks_alike_have_as_many_parameters_as_scaled_ones(name, masking):
    settings = varied(name, masking, layerwise_scaling=False)
    assert len(set(settings["attention_ratios"])) == len(set(settings["ffn_ratios"])) == 1
    alike, scaled = (
        sum(p.numel() for p in network_on_meta(s, EXPERTS, masking, INPUTS[name]).parameters())
        for s in (settings, model(name))
    )
    assert alike == pytest.approx(scaled, rel=0.02)


@pytest.mark.parametrize(("name", "half", "double"), [("nano", (1, 32), (4, 128)), ("xl", (3, 384), (12, 1536))])
def test_the_mixer_is_varied_in_depth_and_in_whole_heads(name, half, double):
    for factor, wanted in ((0.5, half), (2.0, double)):
        settings = varied(name, patch_mixer_depth=factor, patch_mixer_width=factor)
        assert (settings["patch_mixer_depth"], settings["patch_mixer_dim"]) == wanted


@pytest.mark.parametrize(
    ("variation", "message"),
    [
        ({"patch_mixer_depth": 0}, "patch_mixer_depth must be a number from 0.001 to 1,000, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a number from .*, got -1.0"),
        ({"equal_flops_mask_ratio": 1.0}, "equal_flops_mask_ratio must be a number from 0 to 0.9999 or null"),
    ],
)
def test_a_variation_that_cannot_be_meant_is_refused(variation, message):
    with pytest.raises(SettingsError, match=message):
        bind(VariationSettings, variation, "variation")


def test_equal_flops_at_a_ratio_that_changes_is_refused(run_settings):
    with pytest.raises(SettingsError, match=r"compare at equal compute with trainer\.max_flops"):
        run_settings("mask_ratio=falling", "variation.equal_flops_mask_ratio=0.75")


def test_a_learning_rate_is_varied_relative_to_its_stage(run_settings):
    plain, doubled = (run_settings(f"variation.learning_rate={factor}").optimizer for factor in (1.0, 2.0))
    assert doubled["lr"] == 2 * plain["lr"]
    assert doubled["kinds"]["matrices"]["lr"] == 2 * plain["kinds"]["matrices"]["lr"]


def test_only_sources_of_the_kinds_that_are_asked_for_are_read(run_settings):
    def sources(*overrides: str) -> list[str]:
        return [source["name"] for source in run_settings(*overrides).data_mix.sources]

    assert sources("data_mix=shapes") == ["shapes_real", "shapes_synthetic"]
    assert sources("data_mix=shapes_real") == sources("data_mix.kinds=[real]") == ["shapes_real"]
    with pytest.raises(SettingsError, match="asks for photos data, but its sources are real, synthetic"):
        run_settings("data_mix.kinds=[photos]")
