"""Configurations as a command line would compose them, each composed once: Hydra takes a fifth of a second for one."""

import copy
import functools
from pathlib import Path

import hydra
from omegaconf import DictConfig

import microdit.commands.compose  # registers the resolvers that conf/ uses

CONF = Path(__file__).parents[2] / "conf"


@functools.cache
def composed(*overrides: str, config: str = "config") -> DictConfig:
    """What Hydra makes of these overrides. Many tests look at it, so none may change it."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(config, list(overrides))


@functools.cache
def resolved(*overrides: str, config: str = "config") -> dict:
    return microdit.commands.compose.plain(composed(*overrides, config=config))


def plain(*overrides: str, config: str = "config") -> dict:
    """The same as plain dictionaries, every interpolation resolved: a copy of your own."""
    return copy.deepcopy(resolved(*overrides, config=config))
