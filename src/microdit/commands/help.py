"""What --help and --list tell: the groups of conf/, their choices, and when to take each, by the files' comments."""

import argparse
import difflib
import shutil
import textwrap
from collections.abc import Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable

from microdit.commands.messages import console
from microdit.kinds import SettingsError

CONF = "microdit.conf"  # in a checkout a link to its conf/, in a wheel a copy
WIDTH = 100  # of --help, in columns
NAMES = 20  # columns for the name of a group
YAML, PACKAGE = ".yaml", "# @package"


def groups() -> dict[str, dict[str, Traversable]]:
    """Every group of conf/ by its name, each with its choices and their files."""

    def below(folder: Traversable, name: str) -> dict[str, dict[str, Traversable]]:
        found = {}
        for each in sorted(folder.iterdir(), key=lambda each: each.name):
            if each.is_dir() and not each.name.startswith("_"):
                found |= below(each, f"{name}/{each.name}" if name else each.name)
        chosen = {e.name.removesuffix(YAML): e for e in folder.iterdir() if e.name.endswith(YAML)}
        return ({name: dict(sorted(chosen.items()))} if name and chosen else {}) | found

    return below(files(CONF), "")


def first_comment(text: str) -> str:
    """The comment that a file of conf/ begins with, on one line: when to choose it."""
    found = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(PACKAGE):
            found.append(line.lstrip("# "))
    return " ".join(found)


def groups_told(*names: str) -> str:
    """These groups with the names of their choices, for --help."""
    known = groups()
    lines = []
    for name in names:
        told = ", ".join(known[name])
        lines.append(wrapped(name, told, NAMES, WIDTH))
    return "\n".join(lines)


def wrapped(name: str, told: str, indent: int, width: int) -> str:
    """A name, and what is told of it in lines of their own column, which begins after `indent`."""
    first = f"  {name:<{indent - 2}}" if len(name) < indent - 2 else f"  {name}\n{'':{indent}}"
    body = textwrap.wrap(told, max(width - indent, 30), break_on_hyphens=False, break_long_words=False)
    return first + f"\n{'':{indent}}".join(body)


def asked_for_a_list(arguments: Sequence[str]) -> bool:
    """Whether a command line asks what there is to choose from; then it has been told. SettingsError for no group."""
    if not any(each == "--list" or each.startswith("--list=") for each in arguments):
        return False
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--list", nargs="?")
    told = parser.parse_known_args(list(arguments))[0].list
    width = shutil.get_terminal_size().columns
    known = groups()
    if told is None:
        for name, choices in known.items():
            console.print(wrapped(name, ", ".join(choices), 20, width), highlight=False)
    else:
        if told not in known:
            near = difflib.get_close_matches(told, known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise SettingsError(f"--list {told}: there is no such group.{hint} There are {', '.join(known)}")
        indent = 3 + min(24, max(len(choice) for choice in known[told])) + 2
        for choice, file in known[told].items():
            comment = first_comment(file.read_text(encoding="utf-8"))
            console.print(wrapped(choice, comment, indent, width), highlight=False)
    return True
