"""What was typed is what is meant, or told with what to type."""

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import hydra
import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from microdit.commands.compose import as_texts, how_to_quote, name_of_sweep, reads_as_typed, refuse_repeated
from microdit.kinds import Limits, SettingsError


def asked(name: str, size: int, prompts: str | list[str], path: Annotated[str, Limits(1, 9)] | None = None) -> None:
    """A function whose arguments are settings."""


def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, Any]:
    (tmp_path / "c.yaml").write_text("name: a\nsize: 1\nprompts: [a]\npath: null\nsource: {name: a, size: 1}\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = hydra.compose("c", list(overrides))
    of_hydra = SimpleNamespace(overrides=SimpleNamespace(task=overrides))
    monkeypatch.setattr(HydraConfig, "get", lambda: of_hydra)
    return OmegaConf.to_container(config)  # type: ignore[return-value]


@pytest.mark.parametrize("typed", ["2024", "2024_06", "007", "1e5", "true", "1.50", "-3", "inf"])
def test_a_number_that_is_meant_as_a_text_is_what_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    settings = composed(tmp_path, monkeypatch, f"name={typed}", f"path={typed}", f"source.name={typed}", "size=3")
    as_texts(settings, asked)
    as_texts(settings["source"], asked, "source")
    assert (settings["name"], settings["path"], settings["source"]["name"]) == (typed, typed, typed)
    assert settings["size"] == 3


def test_numbers_in_a_list_of_texts_are_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = composed(tmp_path, monkeypatch, "prompts=[2024, a red circle, true]")
    as_texts(settings, asked)
    assert settings["prompts"] == ["2024", "a red circle", "true"]


def test_a_number_of_which_it_is_lost_how_it_was_typed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = composed(tmp_path, monkeypatch, "prompts=[2024_06, a]")
    with pytest.raises(
        SettingsError, match="prompts: a text in it was taken for the number 202406; put each in quotes"
    ):
        as_texts(settings, asked)


@pytest.mark.parametrize(
    "given",
    [
        ["source.path=t/0.tar", "source.path=t/1.tar", "source.path=t/2.tar"],
        ["seed=1", "seed=2"],
        ["+scale=tiny", "scale=xl"],
        ["-m", "seed=1,2", "trainer.max_steps=3", "seed=3"],
    ],
)
def test_a_setting_with_two_values_is_refused(given: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"is given [23] times .*Type it once.*two pairs of quotes"):
        refuse_repeated(given)


@pytest.mark.parametrize(
    "given", [[], ["seed=1", "trainer=gpu", "trainer.seed=2"], ["seed=1", "seed=1"], ["-m", "a=1,2"]]
)
def test_other_command_lines_are_not(given: list[str]) -> None:
    refuse_repeated(given)


@pytest.mark.parametrize(
    "value", ["holiday, 2024", "a=b", "new (1)", "x [best]", "ünïcode", "t/{0..9}.tar", 'the "best", one']
)
def test_a_value_that_is_read_otherwise_is_told_with_quotes_that_help(value: str) -> None:
    argument = f"source.path={value}"
    assert not reads_as_typed(argument, swept=False)
    told = how_to_quote(["name=mine", argument])
    typed = told.partition("quotes: '")[2].rpartition("' (docs")[0]
    assert typed.startswith("source.path=")
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(typed).value() == value


def test_what_is_read_as_it_was_typed_needs_no_word_on_quotes() -> None:
    assert how_to_quote(["name=mine", "source.path=my photos", "resolutions_px=[8]"]) == ""
    assert how_to_quote(["-m", "seed=1,2"]) == ""


@pytest.mark.parametrize(("mode", "name"), [(RunMode.MULTIRUN, "sweep_of_masks"), (RunMode.RUN, None)])
def test_a_job_knows_the_name_of_its_sweep(monkeypatch: pytest.MonkeyPatch, mode: RunMode, name: str | None) -> None:
    assert name_of_sweep() is None  # no command runs
    of_hydra = SimpleNamespace(mode=mode, runtime=SimpleNamespace(output_dir="runs/sweep_of_masks/0-naive"))
    monkeypatch.setattr(HydraConfig, "initialized", lambda: True)
    monkeypatch.setattr(HydraConfig, "get", lambda: of_hydra)
    assert name_of_sweep() == name
