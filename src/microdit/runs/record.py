"""A run's result.json: written when training ends, added to by evaluations, without ever losing what was there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from microdit.files import (
    DamagedFileError,
    alone_in,
    appending,
    characters_in,
    read_json,
    sealed,
    size_of_file,
    unsealed,
    write_json,
)
from microdit.kinds import SettingsError, check_kind, is_of
from microdit.runs.folder import CONFIG_FILE, HISTORY_FILE, RESULT_FILE, read_config

RECORD_CURE = "move it away: training or evaluating again writes another"
Record = dict[str, str | float | bool | None]


def write_record(run: Path, record: dict[str, Any]) -> None:
    """Writes the run's result.json, whole or not at all."""
    write_json(run / RESULT_FILE, readable(record))


def readable(record: dict[str, Any]) -> dict[str, Any]:
    """A record with null for each number that `read_record` would refuse: NaN, infinite, or larger than any is."""
    return {
        name: None if isinstance(value, float) and not is_of(value, float) else value for name, value in record.items()
    }


def finished_record(run: Path) -> dict[str, Any] | None:
    """What a run left in result.json, if it finished."""
    record = read_record(run / RESULT_FILE)
    return record if record.get("status") == "finished" else None


def add_to_record(run: Path, numbers: dict[str, float], making: dict[str, Any]) -> Record:
    """Adds `numbers` to RUN/result.json, which is replaced whole, and a line with `making` to evaluation/history.jsonl.

    A number that was there under the same name is replaced; those whose value changed are returned with the old value,
    which the history keeps too. Several processes may add at once. DamagedFileError for a result.json that is none,
    OSError for a history that is no ordinary file; neither is changed then.
    """
    path, history = run / RESULT_FILE, run / HISTORY_FILE
    with alone_in(run):
        record = read_record(path)
        replaced = {name: record[name] for name in numbers if name in record and record[name] != numbers[name]}
        history.parent.mkdir(parents=True, exist_ok=True)
        if history.exists():
            size_of_file(history)
        with appending(history, encoding="utf-8") as file:
            file.write(json.dumps(sealed({**making, "numbers": numbers, "replaced": replaced})) + "\n")
        write_json(path, readable(record | numbers))
    return replaced


def usual_settings(run: Path, metric: str) -> dict[str, Any] | None:
    """The settings with which a run's plain numbers of a metric were made: those of its own config.yaml, or of the
    first evaluation in its history. None where it has no such numbers yet. Raises SettingsError for damaged files."""
    config, history = run / CONFIG_FILE, run / HISTORY_FILE
    try:
        measured = read_config(run).get("metrics") or {}
        check_kind(measured, dict[str, dict[str, Any] | None], f"{config}: metrics")
        if metric in measured:
            return measured[metric]
        for each in read_history(history):
            if each.get("metric") == metric and "settings" in each:
                return each["settings"]
        return None
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"{config} or {history} cannot be read ({error}), so it is not known how this run was measured before; "
            "move the damaged file away, then evaluate again"
        ) from error


def read_history(path: Path) -> Iterator[dict[str, Any]]:
    """The evaluations after training, one by one. ValueError or RecursionError for a line that tells of none,
    or is not as it was written."""
    if not path.exists() or not size_of_file(path):
        return
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            made = json.loads(line)
            characters_in(made, {})
            check_kind(made, dict[str, Any], f"line {number}")
            unsealed(made)
            check_kind(made.get("settings", {}), dict[str, Any], f"line {number}: settings")
            yield made


def read_record(path: Path) -> Record:
    """A run's record; one that says "unfinished" where training left none yet. DamagedFileError for one that holds more
    than plain values."""
    if not path.exists():
        return {"status": "unfinished"}
    record = read_json(path, RECORD_CURE)
    try:
        check_kind(record, Record, f"{path}:")
    except SettingsError as error:
        raise DamagedFileError(f"{error}; {RECORD_CURE}") from error
    return record
