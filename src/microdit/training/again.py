"""A job that is started once more in its own folder: a sweep that was cut short is typed again and goes on."""

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from microdit.analysis.differences import differences, settings_of
from microdit.build import SettingsError
from microdit.checkpoints import checkpoints_of
from microdit.training.chain import finished_record
from microdit.training.hardware import is_rank_zero
from microdit.training.launch import launch
from microdit.training.rank import CONFIG_FILE


def launch_unless_finished(
    config: dict[str, Any], choices: dict[str, str], folder: Path, console: Console
) -> dict[str, Any]:
    """Runs training in `folder` as `launch` does, unless a run with the same settings has finished there: then its
    record is returned, and a line says so. A run that resume= names always goes on.

    Raises SettingsError where the folder holds a run with other settings, which is left as it is: its checkpoints
    would be gone on with under the wrong name.
    """
    if config["resume"] is not None or not (folder / CONFIG_FILE).is_file():
        return launch(config, choices, folder, console)
    was = settings_of(yaml.safe_load((folder / CONFIG_FILE).read_text()))
    now = settings_of({**config, "choices": choices})
    record = finished_record(folder)
    if record is not None and was == now:
        if is_rank_zero():
            console.print(f"skipped, finished before with the same settings: {folder}", highlight=False, soft_wrap=True)
        return record
    # Other metrics judge the same network: the run is evaluated again.
    changed = [one for one in differences(was, now) if not one.startswith("metrics.")]
    if changed and (record is not None or checkpoints_of(folder)):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise SettingsError(
            f"{folder} holds a run with other settings ({'; '.join(changed[:3])}{more}): choose another folder, "
            f"or go on with that run as it was started, resume={folder}"
        )
    return launch(config, choices, folder, console)
