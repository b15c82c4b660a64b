"""The house: who may know whom. An import that is not on this list is either a mistake or a change of the plan.

Every import counts, also those inside functions and those for types alone.
"""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "microdit"
MOST_MODULES = 14  # in a folder

SHARED = {
    "build",
    "files",
    "grid",
    "kinds",
    "pretrained",
    "progress",
}  # single files at the bottom, for all
# A room and the rooms that it may know, beside SHARED: from the bottom to the top, so that no arrow runs up.
ROOMS: dict[str, set[str]] = {
    "masking": set(),
    "model": {"masking"},
    "objectives": {"masking", "model"},
    "sampling": {"model", "objectives"},
    "kernels": {"model"},
    "encoders": set(),
    "data": set(),
    "runs": set(),
    "checkpoints": {"model", "runs"},
    "pipeline": {"masking", "model", "objectives", "sampling", "encoders", "runs", "checkpoints"},
    "hub": {"masking", "model", "objectives", "sampling", "encoders", "runs", "checkpoints", "pipeline"},
    "cost": {"masking", "model", "kernels", "encoders", "pipeline"},
    "evaluation": {"objectives", "sampling", "encoders", "data.shapes", "data.sources", "checkpoints", "pipeline"},
    "representation": {"masking", "model", "cost", "encoders", "evaluation"},
    "distributed": {"model", "runs", "checkpoints"},
    "training": {
        *(
            "masking",
            "model",
            "objectives",
            "sampling",
            "kernels",
            "encoders",
            "data",
            "runs",
            "checkpoints",
            "pipeline",
            "cost",
        ),
        *("evaluation", "representation", "distributed"),
    },
    "reports": {"runs", "evaluation.pictures"},
    "commands": {
        *("masking", "encoders", "kernels", "sampling", "data", "runs", "checkpoints", "pipeline", "cost"),
        *("evaluation", "representation", "distributed", "training", "hub", "reports"),
    },
}
INSIDE = {  # rooms within a room
    "data.shapes": set(),
    "data.shards": set(),
    "data.sources": {"data.shapes", "data.shards"},
    "data.stream": {"data.shards"},
    "data.prepare": {"data.shapes", "data.shards", "data.sources"},
    "kernels.cpu": set(),
    "kernels.gpu": set(),
    "evaluation.shapes": {"evaluation"},
    "evaluation.geneval": {"evaluation"},
    "evaluation.judging": {"evaluation", "evaluation.geneval"},
    "training.callbacks": {"training"},
}
HYDRA = ("hydra", "omegaconf")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


def imports_of(path: Path) -> set[str]:
    """The modules a file imports, those of this project without "microdit."."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively, which this test would not see"
            modules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if is_module(name) else str(node.module) for name in modules}
    return {name.removeprefix("microdit.") if name.startswith("microdit.") else name for name in found}


def is_module(name: str) -> bool:
    place = SRC.parent.joinpath(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


FILES = {module_name(path): path for path in SRC.rglob("*.py")}
ARROWS = {name: {other for other in imports_of(path) if other in FILES} for name, path in FILES.items()}


def room_of(name: str) -> str:
    return name.partition(".")[0]


def inner_room_of(name: str) -> str:
    """The room within a room that a module is in, or its room."""
    return next((inner for inner in INSIDE if name == inner or name.startswith(f"{inner}.")), room_of(name))


@pytest.mark.parametrize("name", sorted(name for name in FILES if name))
def test_imports_run_one_way(name):
    room = room_of(name)
    allowed = ROOMS.get(room, set())
    for other in ARROWS[name]:
        if room_of(other) == room:
            inner, other_inner = inner_room_of(name), inner_room_of(other)
            if inner != other_inner and inner in INSIDE:
                assert other_inner in INSIDE[inner], f"{name} -> {other}: {inner} may not know {other_inner}"
            continue
        known = room_of(other) in SHARED or any(other == a or other.startswith(f"{a}.") for a in allowed)
        assert known, f"{name} -> {other}: {room} may know {', '.join(sorted(allowed)) or 'nobody'}"


def test_no_room_may_know_one_that_stands_above_it():
    places = {room: place for place, room in enumerate(ROOMS)}
    for room, allowed in ROOMS.items():
        assert all(places[room_of(other)] < places[room] for other in allowed), room


def test_every_module_stands_in_a_room():
    strays = {room_of(name) for name in FILES if name} - set(ROOMS) - SHARED
    assert not strays


def test_modules_do_not_import_each_other_in_circles():
    done: set[str] = set()

    def follow(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for other in ARROWS[name]:
                follow(other, (*path, name))
            done.add(name)

    for name in FILES:
        follow(name, ())


@pytest.mark.parametrize("name", sorted(name for name in FILES if name))
def test_only_commands_know_hydra(name):
    known = {other.partition(".")[0] for other in imports_of(FILES[name])}
    assert room_of(name) == "commands" or not known.intersection(HYDRA)


@pytest.mark.parametrize("room", ["model", "masking", "objectives", "sampling"])
def test_the_network_and_the_mathematics_are_pure_torch(room):
    known = {
        other.partition(".")[0]
        for name, path in FILES.items()
        if room_of(name) == room
        for other in imports_of(path)
        if other not in FILES
    }
    standard = {"abc", "collections", "dataclasses", "functools", "itertools", "math", "typing", "__future__"}
    assert known <= {"torch", "jaxtyping", "numpy"} | standard


def test_no_folder_is_crowded():
    folders = {path.parent for path in SRC.rglob("*.py")}
    crowded = [f for f in folders if len([p for p in f.glob("*.py") if p.name != "__init__.py"]) > MOST_MODULES]
    assert not crowded


def test_three_files_lead_from_the_command_to_the_training_loop():
    root = SRC.parents[1]
    assert "commands.entry_points" in imports_of(root / "train.py")
    assert "commands.train" in ARROWS["commands.entry_points"]
    assert "training.run" in ARROWS["commands.train"]
    assert "trainer.fit(" in FILES["training.run"].read_text()
