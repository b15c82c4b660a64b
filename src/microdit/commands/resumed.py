"""What a resumed run is made of: its own config.yaml, maybe from elsewhere, changed as the command line asks."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from microdit.kinds import Place, SettingsError, check_kind, told_with
from microdit.runs.differences import flat
from microdit.runs.folder import CONFIG_FILE, WANDB_FOLDERS, places_named, resolved

# Groups that say where and how a run is made, not what it makes; how long it is stays with the run.
EXCHANGEABLE = ("trainer", "logger")
HOW_LONG = ("max_steps", "max_flops")
DATA_ORDER = ("seed", "resolution_stage.global_batch_size", "resolution_stage.resolution_px")
# Of the command line alone: neither is part of a run.
NOT_SAVED = ("resume", "trust")
# What a run's file may say of a logger, and the folders that others than the run are kept in.
LOGGER_SETTINGS = ("_target_", "project", "name", "version", "offline", "group", "tags", "notes", "job_type")
NAMES = ("name", "version", "project", "group", "job_type", "tags", "notes")
WANDB = "lightning.pytorch.loggers.WandbLogger"
NAME_ALONE = re.compile(r"(?!.*\.\.)[^/\\$~%]*")
DEEPEST_SETTING = 1  # dots in logger.NAME.SETTING, below which nothing is looked at
KEPT_FOLDERS = ("cache_folder", "download_folder")
ADDRESSES = ("address",)  # of a judge, whom pictures and the user's key are sent to
NOT_BY_FILE = "Where things are sent or kept, and as whom, no run's file may say; if it is meant, type it"
# Groups of conf/ that decide what the network is, which a resumed run keeps.
NETWORK_GROUPS = ("model", "variation", "moe", "masking", "autoencoder", "text_encoder", "representation")


def check_saved(saved: Mapping[str, Any], file: Path) -> None:
    """Raises SettingsError, which names `file`, where what it holds are no settings of a run."""
    from microdit.training.settings import training_settings  # Lightning, which other commands do without

    with told_with(file):
        check_kind(saved.get("choices"), Mapping[str, str], "choices")
        config, chosen = {name: value for name, value in saved.items() if name != "choices"}, saved["choices"]
        if lacking := sorted({"autoencoder", "text_encoder"} - {*chosen}):
            raise SettingsError(f"choices also needs: {', '.join(lacking)}")
        if any(".." in Path(name).parts for name in chosen.values()):  # data is kept in folders of these names
            raise SettingsError(f"choices lead elsewhere: {', '.join(chosen.values())}")
        training_settings(config, file.parent, dict(chosen))


def changed_values(
    saved: dict[str, Any], overrides: list[str], now: DictConfig, where: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration and choices that a run was started with (what its config.yaml holds), changed as this command
    line asks: in values, and in the groups of EXCHANGEABLE, of which `now` has what is chosen now.

    Raises SettingsError for an override that would make it another model or another run.
    """
    config = OmegaConf.create(as_text(saved))
    assert isinstance(config, DictConfig)
    chosen = {str(group): str(choice) for group, choice in config.pop("choices").items()}
    parsed = [o for o in OverridesParser.create().parse_overrides(overrides) if o.key_or_group not in NOT_SAVED]
    for override in (o for o in parsed if o.key_or_group in EXCHANGEABLE):
        group = override.key_or_group
        kept = {name: config.trainer[name] for name in HOW_LONG} if group == "trainer" else {}
        config[group] = {**OmegaConf.to_container(now[group], resolve=False), **kept}  # type: ignore[dict-item]
        chosen[group] = str(override.value())
    for override in (o for o in parsed if o.key_or_group not in EXCHANGEABLE):
        key, value = override.key_or_group, override.value()
        was = OmegaConf.select(config, key)
        if override.is_delete() or override.is_add() or (was is None and not key_exists(config, key)):
            raise SettingsError(
                f"{override.input_line}: {where} has no such setting, and a resumed run gets no new ones"
            )
        if OmegaConf.is_dict(was):
            raise SettingsError(
                f"{override.input_line}: a resumed run keeps its {key}; other groups than {', '.join(EXCHANGEABLE)} "
                f"cannot be exchanged, only values in them"
            )
        if (key.partition(".")[0] in NETWORK_GROUPS or key in DATA_ORDER) and was != value:
            what = "model" if key.partition(".")[0] in NETWORK_GROUPS else "samples and their order"
            raise SettingsError(f"{key} is {was} in {where}: a resumed run keeps its {what}, it cannot become {value}")
        OmegaConf.update(config, key, value)
    try:
        changed = plain(config)
    except MissingMandatoryValue as error:
        raise SettingsError(f"{where / CONFIG_FILE}: {error}; put the value in its place") from error
    typed = {override.key_or_group for override in parsed}
    refuse_destinations(changed, typed, now, where)
    if isinstance(changed.get("paths"), dict):
        changed["paths"]["makes_shapes"] = may_make_shapes(changed, typed, now)
    for key, text, place in read_elsewhere(changed, where):
        if place.copied and not is_typed(key, typed):
            raise SettingsError(
                f"{where / CONFIG_FILE} says {key}={text}. Captions of pictures are written into the run, so those "
                f"that lie neither in it nor in your paths.data_root are read where you name them: {key}={text}"
            )
    return changed, chosen


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain dictionaries, every interpolation resolved."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def read_elsewhere(config: Mapping[str, Any], run: Path) -> list[tuple[str, str, Place]]:
    """What a resumed run reads that lies neither in its folder nor in a data root that is this command line's own."""
    from microdit.training.settings import Configuration  # Lightning, which other commands do without

    paths = config.get("paths", {})
    own_root = [Path(paths["data_root"])] if paths.get("makes_shapes") else []
    return places_named({**config, "logger": {}, "resume": None}, [run, *own_root], Configuration)


def as_text(value: Any) -> Any:
    """The same for OmegaConf, with nothing in it to be resolved: a run's file may come from elsewhere, and what it says
    must not read this machine's environment."""
    if isinstance(value, Mapping):
        return {key: as_text(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [as_text(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def refuse_destinations(config: Mapping[str, Any], typed: set[str], now: DictConfig, where: Path) -> None:
    """Raises SettingsError where a run's file alone says where something is sent, as whom, or where it is kept: that is
    for the command line and the environment, which hold the user's secrets. `typed` are the keys of the command line.
    """
    for name, value in flat(config["logger"]):
        key, setting = f"logger.{name}", name.rpartition(".")[2]
        # Loggers make folders of names, and put variables of the environment into them.
        target = config["logger"][name.partition(".")[0]].get("_target_")
        taken = target != WANDB and value in WANDB_FOLDERS
        leads_away = isinstance(value, str) and setting in NAMES and (taken or not NAME_ALONE.fullmatch(value))
        # A folder to ours, to others an earlier run of the user's that this one would be written into.
        joins = setting == "version" and value is not None and not str(target).startswith("microdit.")
        refused = setting not in LOGGER_SETTINGS or leads_away or joins or name.count(".") > DEEPEST_SETTING
        if refused and not is_typed(key, typed):
            raise SettingsError(
                f"{where / CONFIG_FILE} says {key}={value}. {NOT_BY_FILE}: {key}={value}, or logger=csv"
            )
    for key, value in flat(config):
        if key.rpartition(".")[2] not in (*KEPT_FOLDERS, *ADDRESSES) or value is None or is_typed(key, typed):
            continue
        if value != OmegaConf.select(now, key):
            raise SettingsError(f"{where / CONFIG_FILE} says {key}={value}. {NOT_BY_FILE}: {key}={value}")


def is_typed(key: str, typed: set[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in typed)


def may_make_shapes(config: Mapping[str, Any], typed: set[str], now: DictConfig) -> bool:
    """Whether missing data may be made in `paths.data_root`: where it was typed, or is what it would be without a run,
    unless that is reached by a link in the working folder, which may have come with the run. Nothing is written outside
    a run because its file says so."""
    root = config.get("paths", {}).get("data_root") or ""
    if {"paths", "paths.data_root"} & typed:
        return True
    here = Path(os.path.abspath(root))
    return root == OmegaConf.select(now, "paths.data_root") and (Path(root).is_absolute() or resolved(here) == here)


def key_exists(config: DictConfig, key: str) -> bool:
    above, _, name = key.rpartition(".")
    node = OmegaConf.select(config, above) if above else config
    return OmegaConf.is_dict(node) and name in node
