"""From plain settings to objects: a dictionary names a class in `_target_` and gives its keyword arguments.

Configuration files choose classes this way, and a saved run is opened again from the same dictionaries. Names are
checked against signatures before anything is built, so that a misspelt key never passes in silence.
"""

import difflib
import importlib
import inspect
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, cast, get_args, get_origin

Built = TypeVar("Built")


# Packages whose classes settings may name: this one, and those that the user trusts. A list of the environment reaches
# the processes of other ranks.
TRUST_VARIABLE = "MICRODIT_TRUST"
OUR_PACKAGE = __name__.partition(".")[0]
TRUSTED = {OUR_PACKAGE, *filter(None, os.environ.get(TRUST_VARIABLE, "").split(","))}
# Of other packages: single classes, and a module with nothing but optimizers in it, which is loaded already.
KNOWN_CLASSES = {"lightning.pytorch.loggers.WandbLogger"}
KNOWN_MODULES = {"torch.optim"}


class SettingsError(ValueError):
    """A setting that cannot be meant: says which one, and what there is instead."""


@contextmanager
def told_with(place: object) -> Iterator[None]:
    """While the block runs, a SettingsError also says where the settings stand: in which file, or group."""
    try:
        yield
    except SettingsError as error:
        raise SettingsError(f"{place}: {error}") from error


def trust(*packages: str) -> None:
    """From here on settings may name what these packages hold, in this process and those that it starts."""
    TRUSTED.update(packages)
    if others := sorted(TRUSTED - {OUR_PACKAGE}):
        os.environ[TRUST_VARIABLE] = ",".join(others)


def refuse_strangers(target: str) -> None:
    """Raises SettingsError where settings may not name `target`: compared as text, before anything is imported, since
    settings may come with a run from elsewhere."""
    package, module = target.partition(".")[0], target.rpartition(".")[0]
    if package not in TRUSTED and module not in KNOWN_MODULES and target not in KNOWN_CLASSES:
        raise SettingsError(
            f"_target_ {target} is not of microdit, and what a run's files name is not loaded from elsewhere. If you "
            f"trust the package {package} and it is meant: trust=[{package}] (in Python: microdit.build.trust)"
        )


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises SettingsError naming the first of `given` that is not `known`, its nearest neighbour and all choices."""
    known = sorted(known)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            raise SettingsError(f"{where} has no setting '{name}'{hint} It knows: {', '.join(known)}")


def locate(target: str, expected: type[Built]) -> Callable[..., Built]:
    """The class, or in a package that the user trusts also the function, that a dotted name stands for.

    Raises SettingsError when there is no such thing, when settings may not name it, or when it does not make an
    `expected`: settings may come with a downloaded run, so a name in them must not call whatever is importable.
    """
    if not isinstance(target, str):
        raise SettingsError(f"_target_ is the name of a class, not {target!r}")
    refuse_strangers(target)
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise SettingsError(f"_target_ {target} cannot be imported: {error}") from error
    try:
        makes = found if inspect.isclass(found) else inspect.signature(found).return_annotation
    except (TypeError, ValueError):  # no function, or one written in C that does not say what it takes
        makes = None
    # Of ours nothing but the classes of this project: neither its functions nor what it has imported.
    theirs = module_name.partition(".")[0] == OUR_PACKAGE and getattr(found, "__module__", None) != module_name
    if theirs or inspect.isabstract(found) or not (inspect.isclass(makes) and issubclass(makes, expected)):
        raise SettingsError(f"_target_ {target} does not make a {expected.__name__}")
    return cast("Callable[..., Built]", found)


def keyword_names(function: Callable[..., Any]) -> list[str] | None:
    """The keyword arguments a class or function takes; None if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]


@cache
def kinds_of(function: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """The kind that each argument of a class or function is annotated with, and whether there has to be one."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        parameters = inspect.signature(function, eval_str=True).parameters.values()
    except NameError:  # a package that names in annotations what it imports for type checkers alone
        parameters = inspect.signature(function).parameters.values()
    return {p.name: (p.annotation, p.default is p.empty) for p in parameters if p.kind in named and p.name != "self"}


class Limits(NamedTuple):
    """In an annotation, as in Annotated[int, Limits(1, 100)]: what a number may be, or how many values a list holds."""

    least: float
    most: float

    def __call__(self, value: Any, where: str) -> bool:
        return self.least <= (value if isinstance(value, int | float) else len(value)) <= self.most

    def in_words(self, is_list: bool) -> str:
        if is_list and self.least == self.most:
            return f", {self.least:,} of them"
        return f", {self.least:,} to {self.most:,} of them" if is_list else f" from {self.least:,} to {self.most:,}"


class OneOf(NamedTuple):
    """In an annotation: a text that has to be one of these."""

    choices: Collection[str]

    def __call__(self, value: Any, where: str) -> bool:
        return value in self.choices


class ArgumentsOf(NamedTuple):
    """In an annotation: settings that are arguments of a class or function."""

    function: Callable[..., Any]

    def __call__(self, value: Any, where: str) -> bool:
        check_arguments(self.function, value, where)
        return True


# What can be meant, more than ten times over.
Steps = Annotated[int, Limits(1, 10**9)]
Images = Annotated[int, Limits(1, 10**6)]
Width = Annotated[int, Limits(1, 2**14)]
Ratio = Annotated[float, Limits(0.001, 64)]
Seed = Annotated[int, Limits(0, 2**32 - 1)]
Positive = Annotated[float, Limits(1e-30, 1e36)]
LARGEST_INTEGER, LARGEST_NUMBER = 2**63 - 1, 1e36  # a float32 holds a hundred times more
LONGEST_SHOWN = 60
IN_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}


def fits(value: Any, kind: Any, where: str) -> bool:
    """Whether a value is what an annotation asks for. Kinds that settings cannot have, such as modules, fit anything.

    SettingsError, which names the key, where the arguments in it are wrong.
    """
    origin, inside = get_origin(kind) or kind, get_args(kind) or (Any,)
    if origin is Annotated:
        return fits(value, inside[0], where) and all(more(value, where) for more in inside[1:])
    if origin in (Union, UnionType):
        return any(fits(value, one, where) for one in [k for k in inside if k in IN_WORDS or get_origin(k)] or inside)
    if origin is Literal:
        return isinstance(value, str) and value in inside
    if origin is tuple and Ellipsis not in inside and isinstance(value, list | tuple):
        return len(value) == len(inside) and all(fits(*pair, where) for pair in zip(value, inside, strict=True))
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(v, inside[0], f"{where}.{n}") for n, v in enumerate(value))
    if origin in (dict, Mapping):
        named = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
        return named and all(fits(one, inside[-1], f"{where}.{name}") for name, one in value.items())
    if origin in (int, float):
        is_number = isinstance(value, int if origin is int else int | float) and not isinstance(value, bool)
        return is_number and abs(value) <= (LARGEST_INTEGER if origin is int else LARGEST_NUMBER)
    return origin not in (bool, str, NoneType) or isinstance(value, origin)


def in_words(kind: Any) -> str:
    """What an annotation asks for."""
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        is_list = (get_origin(inside[0]) or inside[0]) in (list, tuple, Sequence)
        limits = [one.in_words(is_list) for one in inside[1:] if isinstance(one, Limits)]
        choices = [f" of {', '.join(one.choices)}" for one in inside[1:] if isinstance(one, OneOf)]
        return "".join([in_words(inside[0]), *limits, *choices])
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(in_words, inside)))
    if origin is Literal:
        return " or ".join(inside)
    if origin in (list, tuple, Sequence):
        return "a list" + (f" whose values are each {in_words(inside[0])}" if inside else "")
    return IN_WORDS.get(origin, "settings by name")


def check_arguments(function: Callable[..., Any], arguments: Any, where: str, given_later: Iterable[str] = ()) -> None:
    """Raises SettingsError, which names the key, where a class or function does not take these arguments: one of
    another name, or of another kind than its annotation says, or where it needs one that is not there."""
    if not isinstance(arguments, Mapping):
        raise SettingsError(f"{where} must be settings by name, got {shown(arguments)}")
    if (known := keyword_names(function)) is not None:
        check_names([*arguments, *given_later], known, where or "the configuration")
    kinds = kinds_of(function)
    missing = [name for name, (_, needed) in kinds.items() if needed and name not in (*arguments, *given_later)]
    if missing:
        raise SettingsError(f"{where or 'the configuration'} also needs: {', '.join(missing)}")
    for name, value in arguments.items():
        kind, _ = kinds.get(name, (Any, False))
        key = f"{where}.{name}".lstrip(".")
        if not fits(value, kind, key):
            raise SettingsError(f"{key} must be {in_words(kind)}, got {shown(value)}")


def shown(value: Any) -> str:
    """A value in a message."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def checked(settings: Mapping[str, Any], expected: type[Built], *given_later: str) -> Callable[..., Built]:
    """What `settings` describe, to be called with the arguments `given_later`: `_target_` names it, the other keys are
    its arguments.

    Raises SettingsError when the target is missing or of another kind, or does not take these arguments.
    """
    if not isinstance(settings, Mapping) or "_target_" not in settings:
        raise SettingsError(f"these settings need a _target_ that names a {expected.__name__}: {shown(settings)}")
    target = settings["_target_"]
    arguments = {name: value for name, value in settings.items() if name != "_target_"}
    found = locate(target, expected)
    check_arguments(found, arguments, target, given_later)
    return partial(found, **arguments)


def build(settings: Mapping[str, Any], expected: type[Built], **extra: Any) -> Built:
    """Builds what `settings` describe, with `extra` arguments. Raises SettingsError as `checked` does."""
    return checked(settings, expected, *extra)(**extra)
