"""What the entry points share: composing the configuration with Hydra, and errors that say what to do.

The one place below the entry points that knows Hydra.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from microdit.build import SettingsError, check_names
from microdit.checkpoints import CheckpointError

console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True, highlight=False)

# Mistakes whose message is all there is to say; anything else keeps its traceback.
TOLD_PLAINLY = (SettingsError, CheckpointError, OSError, ValueError)
UNKNOWN_KEY = re.compile(r"Could not override '([^']+)'")


def run_folder(resume: str | None, output_root: str, new: str) -> str:
    """Where a run writes: into the run it resumes ("last": the newest below `output_root`), else into a new folder.

    Raises SettingsError when there is nothing to resume.
    """
    if resume is None:
        return str(Path(output_root) / new)
    if resume != "last":
        if not (Path(resume) / "config.yaml").is_file():
            raise SettingsError(f"resume={resume}: that is no run, it holds no config.yaml")
        return resume
    runs = sorted(Path(output_root).glob("**/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise SettingsError(f"resume=last: there is no run below {output_root}")
    return str(runs[-1].parent)


OmegaConf.register_new_resolver("run_folder", run_folder, replace=True)


def plain(config: DictConfig) -> dict[str, Any]:
    """The composed configuration as plain dictionaries, every interpolation resolved."""
    container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def choices() -> dict[str, str]:
    """Which file of `conf/` was chosen in each group."""
    chosen = HydraConfig.get().runtime.choices
    return {str(k): str(v) for k, v in chosen.items() if not str(k).startswith("hydra/") and v is not None}


def resumed_config(folder: Path, overrides: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration and choices a run was started with, with values (not groups) that this command line changes.

    Raises SettingsError for an override that would make it another model or another run.
    """
    saved = OmegaConf.load(folder / "config.yaml")
    assert isinstance(saved, DictConfig)
    choices = {str(group): str(choice) for group, choice in saved.pop("choices").items()}
    for override in OverridesParser.create().parse_overrides(overrides):
        key, value = override.key_or_group, override.value()
        if key == "resume":
            continue
        was = OmegaConf.select(saved, key)
        if override.is_delete() or override.is_add() or was is None or OmegaConf.is_dict(was):
            raise SettingsError(f"{override.input_line}: a resumed run keeps its configuration; only values can change")
        if key.partition(".")[0] in ("model", "moe", "masking", "autoencoder", "text_encoder") and was != value:
            raise SettingsError(f"{key} is {was} in {folder}: a resumed run keeps its model, it cannot become {value}")
        OmegaConf.update(saved, key, value)
    saved.resume = str(folder)
    return plain(saved), choices


def composed(config: DictConfig) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration and the choices behind it: those of the command line, or of the run it resumes."""
    if config.resume is None:
        return plain(config), choices()
    return resumed_config(output_folder(), list(HydraConfig.get().overrides.task))


def output_folder() -> Path:
    """The folder of this run."""
    return Path(HydraConfig.get().runtime.output_dir)


def run_entry_point(main: Callable[[], None], default_config: Callable[[], DictConfig]) -> None:
    """Calls a Hydra main. A mistake of the user ends it with one message and exit code 1; Ctrl-C with 130.

    `default_config` composes the configuration without overrides, to list the keys there are.
    """
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing: the message is ours to write
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        errors.print(f"[red]error:[/red] {composition_message(error, default_config)}")
        sys.exit(1)
    except TOLD_PLAINLY as error:
        errors.print("[red]error:[/red]", str(error), markup=True)
        sys.exit(1)
    except KeyboardInterrupt:
        errors.print("stopped by Ctrl-C; finished checkpoints are kept and resume=RUN continues from the newest")
        sys.exit(130)


def composition_message(error: Exception, default_config: Callable[[], DictConfig]) -> str:
    """What is wrong with the command line; for a key that does not exist, also which keys there are."""
    found = UNKNOWN_KEY.search(str(error))
    if found is None:
        return str(error)
    key = found.group(1)
    node: Any = default_config()
    path = key.split(".")
    for depth, name in enumerate(path):
        try:
            check_names([name], [str(k) for k in node], where=".".join(path[:depth]) or "the configuration")
        except SettingsError as unknown:
            return str(unknown)
        node = node[name]
        if not isinstance(node, DictConfig):
            return f"{'.'.join(path[: depth + 1])} is a single value, it has no setting below it ({key})"
    return str(error)
