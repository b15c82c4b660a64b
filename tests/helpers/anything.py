"""Whatever somebody else's file may hold instead of what is meant, in every place of it."""

import copy
import math
from collections.abc import Iterator
from typing import Any

DELETED = object()
OTHERS: list[Any] = [
    *(None, True, "x", "", "12", "\u0000", [], [1], {}, {"a": 1}, [None], [[]], [{}], {"_target_": "x"}),
    *(0, -1, 1, 3, 10**6, 10**9, 10**30, 10**400, 0.5, -0.5, 1e300, 1e-300, math.nan, math.inf, DELETED),
]


def places(settings: Any, above: tuple = ()) -> Iterator[tuple]:
    """Where values lie in nested settings, groups and lists among them."""
    names = settings if isinstance(settings, dict) else range(len(settings)) if isinstance(settings, list) else ()
    for name in names:
        yield (*above, name)
        yield from places(settings[name], (*above, name))


def replaced(settings: dict, place: tuple, value: Any) -> dict:
    """A copy with another value in one place, or without what is there."""
    changed = copy.deepcopy(settings)
    inner = changed
    for name in place[:-1]:
        inner = inner[name]
    if value is DELETED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = copy.deepcopy(value)
    return changed


class Reader:
    """A class of a package that is trusted, which says of none of its arguments that it is a place."""

    def __init__(self, secret, more, count):
        raise AssertionError("made although it is only looked at")
