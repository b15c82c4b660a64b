"""The run folder: what its files are called, which folders are runs, and which of them is meant.

Each name stands here and nowhere else; training, resuming, reports, evaluation and export all ask here.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from microdit.build import places_in
from microdit.files import near_path, read_yaml, write_yaml
from microdit.kinds import Place, SettingsError, told_with
from microdit.pretrained import EMBEDDED
from microdit.runs.older import todays_config

CONFIG_FILE = "config.yaml"  # all that the run was told, with its `choices`
STAGES_FILE = "stages.yaml"  # of a chain of stages, whose runs are in folders below
PIPELINE_FILE = "pipeline.json"  # what LatentDiffusion.load builds the network and encoders from
RESULT_FILE = "result.json"  # one flat record, once the run has ended
DATA_FILE = "data.json"  # which samples it trains and validates on
METRICS_FILE = "metrics.csv"  # one row a logged step
CHECKPOINTS, SAMPLES, EVALUATION, LOGS = "checkpoints", "samples", "evaluation", "logs"  # folders
HISTORY_FILE = f"{EVALUATION}/history.jsonl"  # every evaluation after training, one a line
JUDGED_PICTURES = f"{EVALUATION}/skills.tar"  # drawn for compositional accuracy

CONFIG_CURE = "put a copy in its place, or start a new run from this one's weights: init_from=THE_RUN"
LOCAL = "local-dir:"
NAMES_A_PATH = ("/", ".", "~", LOCAL)  # whatever else weights are called that has a slash in it may be on a hub
NUMBERS = re.compile(r"\{\w+\.\.\w+\}")  # as in {000..123}.tar, names of files beside each other
WANDB_FOLDERS = ("wandb", ".wandb")
SHARDED_MARK = "meta.pt"  # the file in a checkpoint that is a folder, by which it is known
STEP_IN_NAME = re.compile(r"step_(\d+)")


def checkpoint_path(run: Path, step: int) -> Path:
    """Where the checkpoint of a step is: a file, or a folder that several ranks wrote."""
    return run / CHECKPOINTS / f"step_{step:07d}.ckpt"


def sample_path(run: Path, step: int) -> Path:
    """Where the grid of pictures of a step is."""
    return run / SAMPLES / f"step_{step:07d}.png"


def checkpoint_step(path: Path) -> int:
    """The training step that a checkpoint's name carries, -1 if it carries none."""
    found = STEP_IN_NAME.search(path.name)
    return int(found.group(1)) if found else -1


def is_checkpoint(path: Path) -> bool:
    """Whether a path is a checkpoint, file or folder, rather than a run."""
    return path.is_file() or (path / SHARDED_MARK).is_file()


def size_on_disk(checkpoint: Path) -> int:
    """The bytes of a checkpoint, file or folder."""
    return sum(path.stat().st_size for path in (checkpoint, *checkpoint.rglob("*")) if path.is_file())


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(run.glob(f"{CHECKPOINTS}/step_*.ckpt"), key=checkpoint_step)


def run_of(path: Path) -> Path:
    """The run that a checkpoint is of; any other path is that of a run itself."""
    return path.parent.parent if is_checkpoint(path) else path


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run that can be gone on with, or of a chain of stages."""
    return any((folder / name).is_file() for name in (CONFIG_FILE, STAGES_FILE))


def to_resume(run: Path) -> Path:
    """The folder to go on with: the run's own, or that of the chain of which the run is a stage."""
    return run.parent if (run.parent / STAGES_FILE).is_file() else run


def runs_below(folder: Path) -> list[Path]:
    """Every run in or below a folder, by name. What lies in a run's folder is part of it, such as the config.yaml that
    Weights & Biases keeps there."""
    marked = {path.parent for name in (RESULT_FILE, CONFIG_FILE) for path in folder.rglob(name)}
    return sorted((run for run in marked if marked.isdisjoint(run.parents)), key=natural)


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Every run in or below `folders`, by name. Raises SettingsError for a folder that holds none."""
    found: list[Path] = []
    for folder in folders:
        runs = runs_below(folder)
        if not runs:
            raise SettingsError(f"{folder} holds no run: no {RESULT_FILE} and no {CONFIG_FILE} in it or below")
        found += [run for run in runs if run not in found]
    return found


def natural(path: Path) -> list[Any]:
    """Sorts 2-naive before 10-naive."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", str(path))]


def run_to_resume(resume: str, output_root: str) -> Path:
    """The run or chain that `resume` names: a run, one of its checkpoints, or "last": of the runs below `output_root`
    the one that was begun last and has a checkpoint (any, where none has one). SettingsError when there is none."""
    if resume != "last":
        if not Path(resume).exists():
            near = near_path(Path(resume))
            raise SettingsError(f"resume={resume}: no such run or checkpoint (resume=last takes the newest run){near}")
        run = run_of(Path(resume))
        if not is_run(run):
            raise SettingsError(f"resume={resume}: that is no run, {run} holds no {CONFIG_FILE}")
        return run
    runs = [run for run in runs_below(Path(output_root)) if is_run(run)]
    if not runs:
        raise SettingsError(f"resume=last: there is no run below {output_root}")
    begun = [run for run in runs if checkpoints_of(run)] or runs
    return to_resume(max(begun, key=lambda run: (run / CONFIG_FILE).stat().st_mtime))


def places_named(settings: Any, folders: Iterable[Path], *kinds: Any) -> list[tuple[str, str, Place]]:
    """What a run's file says is to be read that is not in one of these folders, such as the run's own: data, weights,
    folders and addresses. Each as key, text and kind of place; `kinds` as in `places_in`."""
    inside = [resolved(folder) for folder in folders]
    return [found for found in places_in(settings, *kinds) if not lies_in(found[1], found[2].on_hub, inside)]


def lies_in(text: str, on_hub: bool, folders: Iterable[Path]) -> bool:
    """Whether a text names what is in one of these folders, or comes with this package. First it is looked at as text:
    an address, or the name of a repository, is none wherever this process runs."""
    if on_hub and text.startswith(EMBEDDED):
        return True
    bare = NUMBERS.sub("0", text.removeprefix(LOCAL) if on_hub else text)
    may_be_on_hub = on_hub and "/" in text and not text.startswith(NAMES_A_PATH)
    if may_be_on_hub or any(mark in bare for mark in ("://", "::", "{")) or text.startswith("hf-hub:"):
        return False
    try:
        leads_to = resolved(bare), resolved(os.path.expanduser(bare))
    except ValueError:  # no path has a NUL, or half a character
        return False
    return all(any(path.is_relative_to(folder) for folder in folders) for path in leads_to)


def resolved(path: str | Path) -> Path:
    """Where a path leads; one that leads in circles ends at a link."""
    return Path(os.path.realpath(path))


def refuse_links(run: Path) -> None:
    """Raises SettingsError where something in a run's folder is a link that leads out of it: what is written or removed
    there would be elsewhere. Or what is no file, such as a pipe, which reading would not end, or a folder that hides
    what is in it. Or where Weights & Biases would read there whom it sends the user's key to."""
    inside = resolved(run)
    for folder, folders, files in os.walk(inside, onerror=cannot_be_listed):
        for path in (Path(folder) / name for name in (*folders, *files)):
            if path.is_symlink():
                refuse_link(path, inside)
            elif not (path.is_file() or path.is_dir()) and path.exists():
                raise SettingsError(f"{path} is neither file nor folder, and nothing else belongs in a run; remove it")
    for path in (*inside.glob("**/wandb/settings"), *inside.glob("**/.wandb/settings")):
        raise SettingsError(f"{path} tells Weights & Biases whom to send things to, which no run's file may; remove it")


def cannot_be_listed(error: OSError) -> None:
    """Raises SettingsError for a folder whose content is hidden, else the error; a folder may be gone meanwhile."""
    if isinstance(error, PermissionError):
        raise SettingsError(
            f"{error.filename} cannot be listed ({error.strerror}), and links out of the run's folder may lie there: "
            "chmod u+rx makes it readable"
        ) from error
    if not isinstance(error, FileNotFoundError):
        raise error


def refuse_link(path: Path, inside: Path) -> None:
    """Raises SettingsError for a link that leads out of a folder or in circles. Weights & Biases links to a log of its
    own beside each run's, through which nobody writes."""
    target = resolved(path)
    if target.is_symlink():
        raise SettingsError(f"{path} is a link that leads nowhere but to itself; remove it")
    by_wandb = path.name == "debug-core.log" and path.parent.name == "logs" and path.parents[2].name in WANDB_FOLDERS
    if not target.is_relative_to(inside) and not (by_wandb and (target.is_file() or not target.exists())):
        raise SettingsError(
            f"{path} is a link to {target}, out of the run's folder, and a run writes nowhere else: put in its place "
            "what it leads to, or make the folder of the whole run a link"
        )


def read_config(run: Path) -> dict[str, Any]:
    """What a run was told, in today's names; empty where it has no config.yaml. DamagedFileError or SettingsError, both
    with the file, for what is no configuration."""
    path = run / CONFIG_FILE
    with told_with(path):
        return todays_config(read_yaml(path, CONFIG_CURE)) if path.is_file() else {}


def write_config(run: Path, config: dict[str, Any], choices: dict[str, str]) -> None:
    """Writes config.yaml, whole or not at all; every machine of a run writes the same."""
    content = {**config, "resume": None, "choices": choices}
    write_yaml(run / CONFIG_FILE, content, writer=os.environ.get("SLURM_NODEID", ""))
