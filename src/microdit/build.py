"""From plain settings to objects: a dictionary names a class in `_target_` and gives its keyword arguments.

Configuration files choose classes this way, and a saved run is opened again from the same dictionaries. Names are
checked against signatures before anything is built, so that a misspelt key never passes in silence.
"""

import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from microdit.kinds import (
    OTHERS,
    ArgumentsOf,
    Place,
    SettingsError,
    Weights,
    alternatives,
    below,
    check_arguments,
    is_described,
    kinds_of,
    shown,
    told_with,
)

Built = TypeVar("Built")


# Packages whose classes settings may name: this one, and those that the user trusts. A list of the environment reaches
# the processes of other ranks.
TRUST_VARIABLE = "MICRODIT_TRUST"
OUR_PACKAGE = __name__.partition(".")[0]
TRUSTED = {OUR_PACKAGE, *filter(None, os.environ.get(TRUST_VARIABLE, "").split(","))}
# Of other packages: single classes, and a module with nothing but optimizers in it, which is loaded already.
KNOWN_CLASSES = {"lightning.pytorch.loggers.WandbLogger"}
KNOWN_MODULES = {"torch.optim"}
# What a class of another package does with a text is not known: it may read what the text names.
UNDECLARED = Weights | Sequence[Weights] | Mapping[str, Weights]


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
    except (ImportError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise SettingsError(f"_target_ {shown(target)} cannot be imported: {error}") from error
    try:
        makes = found if inspect.isclass(found) else inspect.signature(found).return_annotation
    except (TypeError, ValueError):  # no function, or one written in C that does not say what it takes
        makes = None
    # Of ours nothing but the classes of this project: neither its functions nor what it has imported.
    theirs = module_name.partition(".")[0] == OUR_PACKAGE and getattr(found, "__module__", None) != module_name
    if theirs or inspect.isabstract(found) or not (inspect.isclass(makes) and issubclass(makes, expected)):
        raise SettingsError(f"_target_ {target} does not make a {expected.__name__}")
    return cast("Callable[..., Built]", found)


def checked(
    settings: Mapping[str, Any], expected: type[Built], where: str = "", given_later: Iterable[str] = ()
) -> Callable[..., Built]:
    """What `settings` describe, to be called with the arguments `given_later`: `_target_` names it, the other keys are
    its arguments. `where`: the group that they are, for messages.

    Raises SettingsError when the target is missing or of another kind, or does not take these arguments.
    """
    with told_with(where):
        if not isinstance(settings, Mapping) or "_target_" not in settings:
            raise SettingsError(f"these settings need a _target_ that names a {expected.__name__}: {shown(settings)}")
        target = settings["_target_"]
        arguments = {name: value for name, value in settings.items() if name != "_target_"}
        found = locate(target, expected)
        check_arguments(found, arguments, where or target, given_later, called=target)
        return partial(found, **arguments)


def build(settings: Mapping[str, Any], expected: type[Built], where: str = "", /, **extra: Any) -> Built:
    """Builds what `settings` describe, with `extra` arguments. Raises SettingsError as `checked` does."""
    with told_with(where):
        return checked(settings, expected, where, extra)(**extra)


def places_in(value: Any, *kinds: Any, where: str = "") -> Iterator[tuple[str, str, Place]]:
    """Every text in settings that says what is read, with its key and its `Place`: as the annotations of the classes
    say that `_target_` names, and `kinds`, of any of which the settings are. SettingsError for a class that settings
    may not name."""
    if isinstance(value, str):
        marks = (mark for kind in kinds for one in alternatives(kind) for mark in getattr(one, "__metadata__", ()))
        yield from ((where, value, mark) for mark in {mark: 0 for mark in marks if isinstance(mark, Place)})
    elif isinstance(value, Mapping | list | tuple):
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            inner_kinds = [inside for kind in (None, *kinds) for inside in kinds_below(value, kind, str(name))]
            yield from places_in(inner, *inner_kinds, where=below(where, name))


def kinds_below(value: Any, kind: Any, name: str) -> Iterator[Any]:
    """The annotations of what lies under a name in settings of a kind; None: in settings that name their class."""
    if kind is None and isinstance(value, Mapping) and "_target_" in value and name != "_target_":
        found = locate(value["_target_"], object)
        if value["_target_"].partition(".")[0] not in (OUR_PACKAGE, "torch", "lightning"):
            yield UNDECLARED
        yield from (declared for known, (declared, _) in kinds_of(found).items() if known in (name, OTHERS))
    for one in alternatives(kind):
        functions = [one] if is_described(one) else []
        if get_origin(one) is Annotated:
            functions = [mark.function for mark in one.__metadata__ if isinstance(mark, ArgumentsOf)]
            yield from kinds_below(value, one.__origin__, name)
        elif not functions:
            yield from get_args(one)[-1:]  # of a list or of settings by name
        for function in functions:
            yield from (declared for known, (declared, _) in kinds_of(function).items() if known in (name, OTHERS))
