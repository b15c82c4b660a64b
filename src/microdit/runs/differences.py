"""In which settings runs differ, from their configurations: what was chosen, and every value, wherever it was set."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

# Names, places, and how a run is made and watched: they change nothing of what is trained.
ASIDE = ("name", "paths", "resume", "reading", "logger", "callbacks")
CHOICES_ASIDE = (*ASIDE, "metrics", "trainer")
"""Choices that do not change what is trained; what metrics and trainer say beyond that shows in their values."""
TRAINER = ("precision", "max_steps", "max_flops", "gradient_compression", "max_skipped_steps")
"""The trainer's settings that change what is trained: the same batch on other devices has the same losses."""


def settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """What a run computes, as dotted names and texts, from its configuration with its `choices`."""
    kept = {group: value for group, value in config.items() if group not in ASIDE}
    kept["choices"] = {k: v for k, v in config.get("choices", {}).items() if k not in CHOICES_ASIDE}
    kept["trainer"] = {k: v for k, v in config.get("trainer", {}).items() if k in TRAINER}
    return {name: as_setting(value) for name, value in flat(kept)}


def flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value below nested dictionaries, under its dotted name; a list is one value."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", list(value) if isinstance(value, tuple) else value


def as_setting(value: Any) -> str:
    """A value as it is written on the command line; floats to 7 digits, so that 1 and 1.0 are the same."""
    if isinstance(value, bool) or value is None or isinstance(value, list):
        return json.dumps(value)
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Where two runs' settings differ, each as "trainer.max_steps: 100, now 200" ("not set": only one has it)."""
    names = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
    return [f"{name}: {was.get(name, 'not set')}, now {now.get(name, 'not set')}" for name in names]
