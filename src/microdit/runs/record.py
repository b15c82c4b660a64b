"""A run's result.json: written when training ends, added to by evaluations, without ever losing what was there."""

import json
from pathlib import Path
from typing import Any

from microdit.files import alone_in, appending, read_json, write_json
from microdit.kinds import SettingsError
from microdit.runs.folder import CONFIG_FILE, HISTORY_FILE, RESULT_FILE, read_config

RECORD_CURE = "move it away: training or evaluating again writes another"


def write_record(run: Path, record: dict[str, Any]) -> None:
    """Writes the run's result.json, whole or not at all."""
    write_json(run / RESULT_FILE, record)


def finished_record(run: Path) -> dict[str, Any] | None:
    """What a run left in result.json, if it finished."""
    path = run / RESULT_FILE
    record = read_json(path, RECORD_CURE) if path.is_file() else {}
    return record if record.get("status") == "finished" else None


def add_to_record(run: Path, numbers: dict[str, float], making: dict[str, Any]) -> dict[str, float]:
    """Adds `numbers` to RUN/result.json, which is replaced whole, and a line with `making` to evaluation/history.jsonl.

    A number that was there under the same name is replaced; those whose value changed are returned with the old value,
    which the history keeps too. Several processes may add at once. DamagedFileError for a result.json that is none.
    """
    path, history = run / RESULT_FILE, run / HISTORY_FILE
    with alone_in(run):
        record = read_record(path)
        replaced = {name: record[name] for name in numbers if name in record and record[name] != numbers[name]}
        history.parent.mkdir(parents=True, exist_ok=True)
        with appending(history, encoding="utf-8") as file:
            file.write(json.dumps({**making, "numbers": numbers, "replaced": replaced}) + "\n")
        write_json(path, record | numbers)
    return replaced


def usual_settings(run: Path, metric: str) -> dict[str, Any] | None:
    """The settings with which a run's plain numbers of a metric were made: those of its own config.yaml, or of the
    first evaluation in its history. None where it has no such numbers yet. Raises SettingsError for damaged files."""
    config, history = run / CONFIG_FILE, run / HISTORY_FILE
    try:
        measured = read_config(run).get("metrics") or {}
        if metric in measured:
            return measured[metric]
        lines = history.read_text(encoding="utf-8").splitlines() if history.is_file() else []
        made = (json.loads(line) for line in lines)
        return next((each["settings"] for each in made if each.get("metric") == metric and "settings" in each), None)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SettingsError(
            f"{config} or {history} cannot be read ({error}), so it is not known how this run was measured before; "
            "move the damaged file away, then evaluate again"
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """A run's record; one that says "unfinished" where training left none yet."""
    if not path.exists():
        return {"status": "unfinished"}
    return read_json(path, RECORD_CURE)
