"""From a composed configuration to a finished run: a new one, or one that goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from microdit.training.run import RESULT_FILE, train
from microdit.training.settings import training_settings
from microdit.training.summary import show_result

CONFIG_FILE = "config.yaml"


def launch(config: dict[str, Any], choices: dict[str, str], folder: Path, console: Console) -> dict[str, Any]:
    """Runs training in `folder` and shows what came out; returns the record of result.json.

    The configuration is written first, so that the run can be resumed from the moment it exists. A run that fails
    leaves a result.json that says so, then raises.
    """
    resume = config["resume"] is not None
    settings = training_settings(config, folder, choices)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(yaml.safe_dump({**config, "resume": None, "choices": choices}, sort_keys=False))
    try:
        record = train(settings, console, resume)
    except Exception as error:
        failure = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
        failure |= {f"choice/{group}": choice for group, choice in choices.items()}
        (folder / RESULT_FILE).write_text(json.dumps(failure, indent=2) + "\n")
        raise
    show_result(console, record, folder)
    return record
