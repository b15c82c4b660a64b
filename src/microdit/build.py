"""From plain settings to objects: a dictionary names a class in `_target_` and gives its keyword arguments.

Configuration files choose classes this way, and a saved run is opened again from the same dictionaries. Names are
checked against signatures before anything is built, so that a misspelt key never passes in silence.
"""

import difflib
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar, cast

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
    if theirs or not (inspect.isclass(makes) and issubclass(makes, expected)):
        raise SettingsError(f"_target_ {target} does not make a {expected.__name__}")
    return cast("Callable[..., Built]", found)


def keyword_names(function: Callable[..., Any]) -> list[str] | None:
    """The keyword arguments a class or function takes; None if it takes any."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]


def required_names(function: Callable[..., Any]) -> list[str]:
    """The keyword arguments a class or function cannot do without."""
    parameters = inspect.signature(function).parameters.values()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.default is p.empty and p.kind in named]


def checked(settings: Mapping[str, Any], expected: type[Built], *given_later: str) -> Callable[..., Built]:
    """What `settings` describe, to be called with the arguments `given_later`: `_target_` names it, the other keys are
    its arguments.

    Raises SettingsError when the target is missing or of another kind, or takes no argument of that name,
    or needs one that is not given.
    """
    if "_target_" not in settings:
        raise SettingsError(f"these settings need a _target_ that names a {expected.__name__}: {dict(settings)}")
    target = settings["_target_"]
    arguments = {name: value for name, value in settings.items() if name != "_target_"}
    found = locate(target, expected)
    if (known := keyword_names(found)) is not None:
        check_names([*arguments, *given_later], known, target)
        missing = [name for name in required_names(found) if name not in (*arguments, *given_later)]
        if missing:
            raise SettingsError(f"{target} also needs: {', '.join(missing)}")
    return partial(found, **arguments)


def build(settings: Mapping[str, Any], expected: type[Built], **extra: Any) -> Built:
    """Builds what `settings` describe, with `extra` arguments. Raises SettingsError as `checked` does."""
    return checked(settings, expected, *extra)(**extra)
