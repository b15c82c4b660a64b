"""One file out of a module and all that it takes from this package, for folders whose code has to stand alone."""

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

OURS = __name__.partition(".")[0]
ONLY_TOLD = {"jaxtyping"}  # of annotations alone, which are not evaluated in what is written
ANNOTATIONS = ("annotation", "returns")


class Module(NamedTuple):
    """A module's text; what it defines, and what it imports: by name, (module, name there, None for the whole)."""

    name: str
    lines: list[str]
    defined: dict[str, ast.stmt]
    imported: dict[str, tuple[str, str | None]]


def bundled(name: str) -> str:
    """The source of one file that defines what the module `name` does, in which nothing of this package is imported.

    What of it is needed is copied as it stands, comments and docstrings too; annotations are left as text. Raises
    ValueError for what cannot be taken over: imports inside functions or under other names, names that two modules
    give to different things, and what a module does beside defining.
    """
    modules: dict[str, Module] = {}
    needed: dict[str, set[str]] = {}
    imports: dict[str, tuple[str, str | None]] = {}

    def module(of: str) -> Module:
        if of not in modules:
            modules[of] = read_module(of)
        return modules[of]

    def follow(of: str, wanted: str, told: bool) -> None:
        here = module(of)
        if wanted in here.defined:
            if told or wanted in needed.setdefault(of, set()):
                return
            needed[of].add(wanted)
            for other, only_told in names_in(here.defined[wanted]):
                follow(of, other, only_told)
        elif wanted in here.imported:
            origin, original = here.imported[wanted]
            if origin.partition(".")[0] != OURS:
                if told and origin in ONLY_TOLD:
                    return
                if imports.setdefault(wanted, (origin, original)) != (origin, original):
                    raise ValueError(f"{of}: {wanted} is {origin}'s here and {imports[wanted][0]}'s elsewhere")
            elif original is None or original != wanted:
                raise ValueError(f"{of}: {origin}.{original} is imported under another name, {wanted}")
            elif not told:
                module(of)
                follow(origin, original, told)

    for wanted in module(name).defined:
        follow(name, wanted, told=False)
    owners: dict[str, str] = {}
    for of, names in needed.items():
        for each in names:
            if each in imports or owners.setdefault(each, of) != of:
                other = owners.get(each, "what is imported")
                raise ValueError(f"{each} is one thing in {of} and another in {other}, and one file has room for one")
    parts = {  # a dictionary, because one statement may define two names
        (of, statement.lineno): source_of(modules[of], statement)
        for of in in_order(name, modules, set(needed))
        for each, statement in modules[of].defined.items()
        if each in needed[of]
    }
    head = [f'"""Written by {OURS}\'s export.py out of {name} and what it takes from there; do not edit."""']
    return "\n".join([*head, "", "from __future__ import annotations", "", *import_lines(imports)]) + "".join(
        f"\n\n\n{part}" for part in parts.values()
    ) + "\n"  # fmt: skip


def read_module(name: str) -> Module:
    """A module of this package, as text. ValueError where it does more than define and import."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {name}")
    text = Path(spec.origin).read_text()
    found = Module(name, text.splitlines(), {}, {})
    for statement in ast.parse(text).body:
        match statement:
            case ast.FunctionDef() | ast.ClassDef():
                found.defined[statement.name] = statement
            case ast.Assign(targets=[target]) | ast.AnnAssign(target=target):
                names = (each.id for each in ast.walk(target) if isinstance(each, ast.Name))
                found.defined.update(dict.fromkeys(names, statement))
            case ast.ImportFrom(module=str(origin), level=0):
                found.imported.update({alias.asname or alias.name: (origin, alias.name) for alias in statement.names})
            case ast.Import():
                found.imported.update({alias.asname or alias.name: (alias.name, None) for alias in statement.names})
            case ast.Expr(value=ast.Constant()) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass  # what it says of itself, and what types alone need
            case _:
                raise ValueError(f"{name}, line {statement.lineno}: this does more than define, and cannot be copied")
    return found


def names_in(node: ast.AST, told: bool = False) -> Iterator[tuple[str, bool]]:
    """The names that a statement looks up, each with whether it stands in an annotation."""
    if isinstance(node, ast.Name):
        yield node.id, told
    origin = node.module if isinstance(node, ast.ImportFrom) else None
    if origin is not None and origin.partition(".")[0] == OURS:
        raise ValueError(f"{origin} is imported inside a function, where it would stay: import it above")
    for field, value in ast.iter_fields(node):
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                yield from names_in(each, told or field in ANNOTATIONS)


def in_order(name: str, modules: dict[str, Module], needed: set[str]) -> list[str]:
    """The modules that are needed, each after those that it imports."""
    ordered: list[str] = []

    def place(of: str) -> None:
        if of in ordered or of not in modules:
            return
        for origin, _ in modules[of].imported.values():
            place(origin)
        ordered.append(of)

    place(name)
    return [of for of in ordered if of in needed]


def source_of(module: Module, statement: ast.stmt) -> str:
    """A statement as it is written, with its decorators and the comment right above it."""
    decorators = getattr(statement, "decorator_list", [])
    first = min(each.lineno for each in [statement, *decorators])
    while module.lines[first - 2].startswith("#"):
        first -= 1
    return "\n".join(module.lines[first - 1 : statement.end_lineno])


def import_lines(imports: dict[str, tuple[str, str | None]]) -> list[str]:
    """The import statements, modules first."""
    whole = {
        f"import {origin}" if name == origin else f"import {origin} as {name}"
        for name, (origin, original) in imports.items()
        if original is None
    }
    single: dict[str, set[str]] = {}
    for name, (origin, original) in imports.items():
        if original is not None:
            single.setdefault(origin, set()).add(name if name == original else f"{original} as {name}")
    return [*sorted(whole), *(f"from {origin} import {', '.join(sorted(single[origin]))}" for origin in sorted(single))]
