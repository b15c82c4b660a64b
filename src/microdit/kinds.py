"""What settings and small files may hold, compared with annotations before anything is made of it.

The annotations of dataclasses, TypedDicts and functions say which names there are, and of which kind: plain types,
lists, tuples, dictionaries, unions and Literal of them, other such classes, and in Annotated how large and what else.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cache
from itertools import repeat
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints, is_typeddict

OUR_PACKAGE = __name__.partition(".")[0]


class SettingsError(ValueError):
    """A setting that cannot be meant: says which one, and what there is instead."""


@contextmanager
def told_with(place: object) -> Iterator[None]:
    """While the block runs, a SettingsError that does not begin with it also says where the settings stand: in which
    file, or group."""
    try:
        yield
    except SettingsError as error:
        if str(error).startswith(str(place)):
            raise
        raise SettingsError(f"{place}: {error}") from error


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises SettingsError naming the first of `given` that is not `known`, its nearest neighbour and all choices."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise SettingsError(f"{where} has no setting '{name}'{hint} It knows: {', '.join(known)}")


class Limits(NamedTuple):
    """In an annotation, as in Annotated[int, Limits(1, 100)]: what a number may be, or how many values there are."""

    least: float
    most: float

    def hold(self, value: Any) -> bool:
        return value is None or self.least <= (value if isinstance(value, int | float) else len(value)) <= self.most

    def in_words(self, counted: bool) -> str:
        if counted and self.least == self.most:
            return f", {self.least:,} of them"
        return f", {self.least:,} to {self.most:,} of them" if counted else f" from {self.least:,} to {self.most:,}"


class OneOf(NamedTuple):
    """In an annotation: a text that has to be one of these."""

    choices: Collection[str]

    def hold(self, value: Any) -> bool:
        return value in self.choices

    def in_words(self, counted: bool) -> str:
        return f" of {', '.join(self.choices)}"


class ArgumentsOf(NamedTuple):
    """In an annotation: settings that are arguments of a class or function, and stay settings."""

    function: Callable[..., Any]


class Place(NamedTuple):
    """In an annotation: a text that says what is read, by an address or a path. `on_hub`: also by the name of a
    repository on a hub. `copied`: words of it are written into a run."""

    on_hub: bool = False
    copied: bool = False


Read = Annotated[str, Place()]
Weights = Annotated[str, Place(on_hub=True)]
Copied = Annotated[str, Place(copied=True)]


# What can be meant, more than ten times over.
Steps = Annotated[int, Limits(1, 10**9)]
Images = Annotated[int, Limits(1, 10**6)]
Width = Annotated[int, Limits(1, 2**14)]
Ratio = Annotated[float, Limits(0.001, 64)]
Seed = Annotated[int, Limits(0, 2**32 - 1)]
Positive = Annotated[float, Limits(1e-30, 1e36)]
Share = Annotated[float, Limits(0, 0.9999)]  # of patches or captions that are dropped, never of all
LARGEST_INTEGER, LARGEST_NUMBER = 2**63 - 1, 1e36  # a float32 holds a hundred times more
LONGEST_SHOWN = 60
IN_WORDS: dict[Any, str] = {
    **{bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"},
    **dict.fromkeys((list, tuple, Sequence), "a list"),
    **dict.fromkeys((dict, Mapping), "settings by name"),
}
OTHERS = "**"  # among the names of a function that takes any; a TypedDict of this name may hold any


def check_kind(value: Any, kind: Any, where: str) -> None:
    """Raises SettingsError that names the first place where a value is not what an annotation asks for. `where` is the
    value's own place: a key, "" for a whole configuration, "FILE:" for all that a file holds."""
    if kind is type(value) is str:  # most of what a long file holds, told quickly
        return None
    told = None
    for one in alternatives(kind):
        if is_of(value, one):
            try:
                return check_inside(value, one, where)
            except SettingsError as error:
                told = error
    raise told or SettingsError(f"{named(where)} must be {in_words(kind)}, got {shown(value)}")


def check_inside(value: Any, kind: Any, where: str) -> None:
    """The same for what is in a value that is outwardly of a kind."""
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        check_kind(value, inside[0], where)
        for more in inside[1:]:
            if isinstance(more, ArgumentsOf):
                check_arguments(more.function, value, where)
    elif is_described(kind):
        check_arguments(kind, value, where)
    elif inside and origin in (dict, Mapping):
        for name, one in value.items():
            check_kind(one, inside[1], below(where, name))
    elif inside and origin in (list, tuple, Sequence):
        kinds = inside if is_fixed(kind) else repeat(inside[0], len(value))
        for number, (one, its_kind) in enumerate(zip(value, kinds, strict=True)):
            check_kind(one, its_kind, below(where, number))


def check_arguments(
    function: Callable[..., Any], arguments: Any, where: str, given_later: Iterable[str] = (), called: str = ""
) -> None:
    """Raises SettingsError, which names the place, where these are no arguments of a class or function, or not what a
    TypedDict has: one of another name or kind, or one lacking. `called`: whose names they are, if not those of
    `where`, which is as in `check_kind`."""
    check_kind(arguments, Mapping, where)
    kinds, called = kinds_of(function), called or named(where)
    if OTHERS not in kinds:
        check_names([*arguments, *given_later], kinds, called)
    missing = [name for name, (_, needed) in kinds.items() if needed and name not in (*arguments, *given_later)]
    if missing:
        raise SettingsError(f"{called} also needs: {', '.join(missing)}")
    for name, value in arguments.items():
        check_kind(value, kinds[name if name in kinds else OTHERS][0], below(where, name))


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is outwardly what an annotation asks for, whatever is in it. An object of this package is what no
    file can hold; other kinds of which that is true, such as modules, may be anything."""
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        limits = [more for more in inside[1:] if isinstance(more, Limits | OneOf)]
        return is_of(value, inside[0]) and all(more.hold(value) for more in limits)
    if origin in (Union, UnionType):
        return any(is_of(value, one) for one in alternatives(kind))
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inside)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and (not is_fixed(kind) or len(value) == len(inside))
    if origin in (dict, Mapping) or is_described(kind):
        return isinstance(value, Mapping) and all(is_of(name, inside[0] if inside else str) for name in value)
    if origin in (int, float):
        is_number = isinstance(value, int if origin is int else int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= (LARGEST_INTEGER if origin is int else LARGEST_NUMBER)
    return not (origin in (bool, str, NoneType) or is_ours(origin)) or isinstance(value, origin)


def is_ours(kind: Any) -> bool:
    """Whether it is a class of this package whose objects are made by it alone."""
    ours = inspect.isclass(kind) and kind.__module__.partition(".")[0] == OUR_PACKAGE
    return ours and not getattr(kind, "_is_protocol", False)


def alternatives(kind: Any) -> Sequence[Any]:
    """Those of a union that a file can hold, if there are any; any other kind alone."""
    if get_origin(kind) not in (Union, UnionType):
        return (kind,)
    return [one for one in get_args(kind) if one in IN_WORDS or get_origin(one) or is_described(one)] or get_args(kind)


def is_fixed(kind: Any) -> bool:
    """Whether it is a tuple whose values each have a kind of their own."""
    return get_origin(kind) is tuple and Ellipsis not in get_args(kind)


def is_described(kind: Any) -> bool:
    return is_typeddict(kind) or (isinstance(kind, type) and is_dataclass(kind))


@cache
def kinds_of(function: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """The kind that each argument of a class or function, or name of a TypedDict, is annotated with, and whether there
    has to be one; that of OTHERS where it takes any."""
    if is_typeddict(function):
        needed = function.__required_keys__
        hints = get_type_hints(function, include_extras=True).items()
        return {name: (kind, name in needed and name != OTHERS) for name, kind in hints}
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except NameError:  # a package that names in annotations what it imports for type checkers alone
        parameters = inspect.signature(function).parameters.values()
    kinds = {}
    for p in parameters:
        if p.kind is p.VAR_KEYWORD:
            kinds[OTHERS] = (p.annotation, False)
        elif p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self":
            kinds[p.name] = (p.annotation, p.default is p.empty)
    return kinds


def in_words(kind: Any) -> str:
    """What an annotation asks for."""
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        counted = (get_origin(inside[0]) or inside[0]) not in (int, float)
        more = [one.in_words(counted) for one in inside[1:] if isinstance(one, Limits | OneOf)]
        return "".join([in_words(inside[0]), *more])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, alternatives(kind))))
    if origin is Literal:
        return " or ".join(map(str, inside))
    if inside and origin in (list, tuple, Sequence):
        count = f", {len(inside)} of them" if is_fixed(kind) else ""
        return f"a list whose values are each {in_words(inside[0])}{count}"
    if is_ours(origin) and not is_described(origin):
        return f"a {origin.__name__}, which settings cannot hold"
    return IN_WORDS.get(origin, "settings by name")


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def named(where: str) -> str:
    return where.removesuffix(":") or "the configuration"


def below(where: str, name: object) -> str:
    return f"{where} {name}" if where.endswith(":") else f"{where}.{name}".removeprefix(".")
