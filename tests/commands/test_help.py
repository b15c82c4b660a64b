"""--help is one screen that says what is true; --list tells when to take each choice."""

import re

import hydra
import pytest
from cli_processes import ROOT, run_script
from compositions import CONF
from omegaconf import DictConfig, OmegaConf

from microdit.commands.help import asked_for_a_list, first_comment, groups
from microdit.commands.messages import console
from microdit.kinds import SettingsError

CONFIGS = {"train": "config", **{name: name for name in ("generate", "prepare", "evaluate", "plan", "demo")}}


@pytest.fixture(scope="module")
def screens() -> dict[str, str]:
    """What --help prints, by a compilation of what Hydra would."""
    found = {}
    with hydra.initialize_config_module("microdit.conf", version_base="1.3"):
        for name, config in CONFIGS.items():
            composed = hydra.compose(config, ["name=x"] if name == "train" else [], return_hydra_config=True)
            found[name] = composed.hydra.help.template.replace("$$", "$")
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_help_is_one_screen(screens, name):
    lines = screens[name].splitlines()
    assert 15 < len(lines) <= 50
    assert [line for line in lines if len(line) > 100] == []


def values(config: DictConfig) -> set[str]:
    """The names of all settings, those of groups with dots."""
    plain = OmegaConf.to_container(config, resolve=False)
    found = set()

    def walk(node: object, above: str) -> None:
        found.add(above)
        for key, value in node.items() if isinstance(node, dict) else ():
            walk(value, f"{above}.{key}" if above else key)

    walk(plain, "")
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_every_setting_that_help_names_exists(screens, name):
    with hydra.initialize_config_module("microdit.conf", version_base="1.3"):
        known = values(hydra.compose(CONFIGS[name], [])) | {*groups()}
    if name == "prepare":
        known |= {"source.path"}  # of source=folder and others
    named = set(re.findall(r"(?<![\w.+-])\+?([a-z_]+(?:\.[a-z_]+)*)=", screens[name])) - {"install"}
    assert len(named) > 5
    assert named <= known


def test_help_of_training_names_every_choice_of_every_group_of_a_run(screens):
    chosen = {line.strip().partition(": ")[0] for line in (CONF / "config.yaml").read_text().splitlines()
              if re.match(r"  - \w+: ", line)}  # fmt: skip
    assert len(chosen) > 15
    told = screens["train"]
    for group in chosen:
        assert all(re.search(rf"\b{choice}\b", told) for choice in groups()[group.removeprefix("- ")])


def test_the_command_prints_it_and_touches_nothing(tmp_path, screens):
    ended = run_script("train.py", "--help", folder=tmp_path)
    assert (ended.returncode, ended.stdout.strip()) == (0, screens["train"].strip())
    ended = run_script("train.py", "--list", "masking", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert [line.split()[0] for line in ended.stdout.splitlines() if line[2] != " "] == [*groups()["masking"]]
    assert "Choose it unless you compare." in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_file_of_a_group_says_when_to_choose_it():
    assert groups().keys() >= {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", "__pycache__"}
    for choices in groups().values():
        for file in choices.values():
            assert len(first_comment(file.read_text(encoding="utf-8")).split()) > 3, file


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("# @package _global_\n# What it is,\n#   and when.\nkey: 1 # not this\n# nor this\n", "What it is, and when."),
        ("key: 1\n# a comment below\n", ""),
    ],
)
def test_the_first_comment_is_told_on_one_line(text, told):
    assert first_comment(text) == told


@pytest.mark.parametrize("typed", [["--list", "experiment"], ["--list=experiment"]])
def test_a_list_has_every_choice_within_the_columns_of_the_screen(typed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with console.capture() as said:
        assert asked_for_a_list(typed)
    lines = said.get().splitlines()
    assert {line.split()[0] for line in lines if line[2:3].strip()} == {*groups()["experiment"]}
    assert all(len(line) <= 80 for line in lines)


def test_what_asks_for_no_list_goes_on_and_a_group_that_is_none_is_told():
    assert not asked_for_a_list(["masking=none", "--cfg", "job"])
    with pytest.raises(SettingsError, match=r"--list maskin: .* Did you mean masking\? There are autoencoder"):
        asked_for_a_list(["--list", "maskin"])


def test_without_a_group_all_are_listed():
    with console.capture() as said:
        assert asked_for_a_list(["--list"])
    assert {line.split()[0] for line in said.get().splitlines() if line[2:3].strip()} == {*groups()}


def test_completion_of_a_shell_is_offered_as_the_documents_say(tmp_path):
    ended = run_script("train.py", "-sc", "install=bash", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "complete" in ended.stdout
    assert "install=bash" in (ROOT / "docs" / "command_line.md").read_text()
