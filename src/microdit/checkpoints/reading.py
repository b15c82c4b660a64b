"""Reading checkpoints, safely and with errors that list what does not fit.

A checkpoint is one file (one process, or DDP) or a folder that many processes wrote (FSDP); both are read the same way.
"""

import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypedDict

import torch
from torch import Tensor, nn

from microdit.checkpoints.archive import check_torch_file
from microdit.checkpoints.sharded import METADATA_FILE, as_lightning_states, damaged_files, read_tensors
from microdit.files import DamagedFileError, characters_in, near_path, read_json, refusal_in, size_of_file
from microdit.kinds import Limits, check_kind, shown
from microdit.runs.differences import as_setting, differences, flat
from microdit.runs.folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    SHARDED_MARK,
    checkpoint_step,
    checkpoints_of,
    read_config,
    refuse_link,
    resolved,
)
from microdit.runs.older import with_todays_names

MOST_TIMES = 4
OF_WEIGHTS = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
LIGHTNING = "pytorch-lightning_version"
OF_LIGHTNING_2 = re.compile(r"[2-9](\.\d{1,9}){1,3}((a|b|rc|\.post|\.dev)\d{1,9})*(\+[\w.]+)?")
SAMPLES_OF_A_STEP = ("seed", "resolution_stage.global_batch_size", "resolution_stage.resolution_px")
KEPT = ("model", "variation", "moe", "masking", *SAMPLES_OF_A_STEP)

# What is read here, or by a run that goes on, of a checkpoint's plain values: the kinds of what there is of these.
Progress = TypedDict("Progress", {"total": dict[str, int], "current": dict[str, int], "**": Any})
FitLoop = TypedDict("FitLoop", {"epoch_loop.batch_progress": Progress, "**": Any})
Loops = TypedDict("Loops", {"fit_loop": FitLoop, "**": Any})
Group = TypedDict("Group", {"params": list[int], "**": Any})
Optimizer = TypedDict("Optimizer", {"state": dict[int, dict[str, Any]], "param_groups": list[Group], "**": Any})
Rates = TypedDict("Rates", {"last_epoch": int, "lr_lambdas": list[NoneType], "**": Any})
Told = TypedDict(
    "Told",
    {"seconds": Annotated[float, Limits(0, 1e12)], "replaced": Annotated[int, Limits(0, 10**15)], "**": Any},
    total=False,
)
Callbacks = TypedDict("Callbacks", {"Telemetry": Told, "**": dict[str, Any]}, total=False)
PLAIN: dict[str, Any] = {
    **{"global_step": int, "loops": Loops, "callbacks": Callbacks, "metadata": dict[str, Any], LIGHTNING: str},
    **{"optimizer_states": Annotated[list[Optimizer], Limits(1, 1)], "optimizer_groups": list[Group]},
    **{"lr_schedulers": Annotated[list[Rates], Limits(1, 1)], "parameter_names": list[str]},
}
TO_GO_ON = ["state_dict", *(name for name in PLAIN if name not in ("metadata", "optimizer_groups"))]


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, unreadable, or of another network."""


def read_checkpoint(path: Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """The content of a checkpoint, tensors and plain values only: nothing in it can run code.

    Raises CheckpointError for one that is missing or damaged, or holds nothing under a name that is `needed`, which
    names the one before it.
    """
    verify_checkpoint(path)
    with told_as_unreadable(path):
        if not path.is_dir():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            check_tensors(content)
            content = plain_content(content, path, needed)
            check_it_is_of_its_run(path, content.get("metadata", {}))
            return content
        rest = read_rest(path, needed)
        groups = rest.pop("optimizer_groups")
        module, optimizer = as_lightning_states(read_tensors(path), rest["parameter_names"], groups)
        check_numbers(module, str(path))
        return {**rest, "state_dict": module, "optimizer_states": [optimizer]}


def read_rest(path: Path, needed: Collection[str]) -> dict[str, Any]:
    """What a checkpoint in parts holds beside its tensors. CheckpointError where it has another form, or lacks what is
    `needed`."""
    with told_as_unreadable(path):
        rest = torch.load(path / SHARDED_MARK, map_location="cpu", weights_only=True)
        check_tensors(rest)
        beside = {*needed, "parameter_names", "optimizer_groups"} - {"state_dict", "optimizer_states"}
        return plain_content(rest, path / SHARDED_MARK, beside)


def check_it_is_of_its_run(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raises CheckpointError for a checkpoint among a run's own that is of another step than its name says, or of
    another run than its config.yaml: in what a resumed run keeps. One that lies elsewhere may be of any."""
    run, step, config = path.absolute().parents[1], checkpoint_step(path), metadata.get("config", {})
    if path.absolute().parent.name != CHECKPOINTS:
        return
    another = "put back the run's own, or start a new run from this one's weights, copied elsewhere: init_from=COPY"
    if metadata.get("step", step) != step >= 0:
        raise CheckpointError(f"{path} holds step {shown(metadata['step'])}: {another}")
    if not isinstance(config, dict):
        raise unreadable(path, "its settings are none")
    try:
        characters_in(config, {})
    except ValueError as error:
        raise unreadable(path, error) from error
    try:
        told = read_config(run)
    except DamagedFileError:  # whoever needs that file tells of it; weights can be had without
        return
    if config and told and (others := differences(identity(config), identity(told))):
        raise CheckpointError(f"{path} is not of the run of {run / CONFIG_FILE} ({'; '.join(others[:3])}): {another}")


def identity(config: Mapping[str, Any]) -> dict[str, str]:
    """What a resumed run keeps of its settings: its network, and the samples of each step."""
    kept = ((name, value) for name, value in flat(with_todays_names(config)) if name.startswith(KEPT))
    return {name: str(value) if isinstance(value, list) else as_setting(value) for name, value in kept}


def verify_checkpoint(path: Path) -> None:
    """Raises CheckpointError when a byte is not what was written, which names the checkpoint and the one before it.
    SettingsError for a run's own that is a link out of it: its weights are another's."""
    if not path.exists():
        raise CheckpointError(f"there is no checkpoint {path}")
    for own in (path.absolute(), path.absolute().parent):
        if path.absolute().parent.name == CHECKPOINTS and own.is_symlink():
            refuse_link(own, resolved(path.absolute().parents[1]))
    with told_as_unreadable(path):
        if path.is_dir():
            damaged = damaged_files(path)
            if not damaged:
                check_it_is_of_its_run(path, checkpoint_metadata(path))
                check_torch_file(path / SHARDED_MARK)
        else:
            size_of_file(path)
            check_torch_file(path)
            with zipfile.ZipFile(path) as archive:  # torch's files are zip archives with a CRC-32 of every member
                damaged = [name] if (name := archive.testzip()) else []
    if damaged:
        raise unreadable(path, f"the checksum of {', '.join(damaged)} is not what was written")


@contextmanager
def told_as_unreadable(path: Path) -> Iterator[None]:
    """While the block reads a checkpoint, what is wrong with it is a CheckpointError; refusals of the system stay."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # torch and zipfile raise RuntimeError, UnpicklingError, EOFError, ... for any damage
        if refusal := refusal_in(error):
            raise refusal from None
        raise unreadable(path, error) from error


def plain_content(content: Any, path: Path, needed: Collection[str]) -> dict[str, Any]:
    """A checkpoint's dictionary, its state_dict among it, as plain dictionaries. ValueError where it has another form,
    lacks what is `needed`, or its tensors together are larger than the file."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} and no checkpoint")
    content = dict(dict.items(content))
    if lacking := [name for name in needed if name not in content]:
        raise ValueError(f"it holds no {', '.join(lacking)}")
    for name in PLAIN.keys() & content.keys():
        check_kind(content[name], PLAIN[name], name)
    if LIGHTNING in content and not OF_LIGHTNING_2.fullmatch(content[LIGHTNING]):
        raise ValueError(f"it is of Lightning {shown(content[LIGHTNING])}, and those of 2.0 and later are read")
    if "state_dict" in content:
        state = content["state_dict"]
        if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in dict.items(state)
        ):
            raise ValueError("its state_dict is no dictionary of tensors")
        content["state_dict"] = dict(dict.items(state))
        # Tensors may share what lies in the file, as an average that has not begun does, but not all of them one thing.
        if sum(value.nbytes for value in content["state_dict"].values()) > MOST_TIMES * path.stat().st_size:
            raise ValueError("its tensors are larger than the file")
        check_numbers(content["state_dict"], str(path))
    return content


def check_tensors(content: Any, seen: set[int] | None = None) -> None:
    """Raises ValueError for a tensor that tells of more numbers than its file holds, anywhere in `content`."""
    if isinstance(content, Tensor) and content.numel() * content.element_size() > content.untyped_storage().nbytes():
        raise ValueError(f"a tensor of shape {list(content.shape)} has {content.untyped_storage().nbytes()} bytes")
    seen = set() if seen is None else seen
    if isinstance(content, dict | list | tuple) and id(content) not in seen:
        seen.add(id(content))
        for inner in content.values() if isinstance(content, dict) else content:
            check_tensors(inner, seen)


def told(error: BaseException) -> str:
    """What is wrong with a file, on one line, without torch's advice to read it unsafely after all."""
    text = " ".join(str(error).split())
    if "weights_only" in text or "arbitrary code" in text:
        named = re.search(r"GLOBAL ([\w.]+)", text)
        return f"it names {named[1]}, and tensors alone are read" if named else "it is no file of tensors"
    return text or type(error).__name__


def unreadable(path: Path, cause: object) -> CheckpointError:
    """The error for a damaged checkpoint: names the one before it, and how to go on from there."""
    reason = told(cause) if isinstance(cause, BaseException) else cause
    earlier = [other for other in checkpoints_of(path.parent.parent) if checkpoint_step(other) < checkpoint_step(path)]
    advice = f"the one before it is {earlier[-1]}: resume={earlier[-1]}" if earlier else "use an earlier checkpoint"
    return CheckpointError(f"{path} cannot be read ({reason}); {advice}")


def checkpoint_metadata(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: config, step, samples seen, where its data goes on, library versions."""
    if not path.is_dir():
        return read_checkpoint(path).get("metadata", {})
    with told_as_unreadable(path):
        return read_json(path / METADATA_FILE, "take another checkpoint")


def latest_checkpoint(run: Path) -> Path:
    """A run's newest checkpoint. Raises CheckpointError when it has none."""
    found = checkpoints_of(run)
    if found:
        return found[-1]
    if not run.is_dir():
        raise CheckpointError(f"there is no {run}: name the folder of a run, or one of its checkpoints{near_path(run)}")
    if below := sorted({path.parent.parent for path in run.glob(f"*/{CHECKPOINTS}/step_*.ckpt")}):
        raise CheckpointError(f"{run} holds several runs, name one of them: {', '.join(map(str, below))}")
    raise CheckpointError(f"{run} has no {CHECKPOINTS}/step_*.ckpt yet: it ended before its first checkpoint")


def network_weights(path: Path, weights: str) -> dict[str, Tensor]:
    """The network's state dict from a checkpoint of training.

    `weights`: "ema" for the moving average where the checkpoint has one, "raw" for the trained weights.
    """
    if weights not in ("ema", "raw"):
        raise CheckpointError(f'weights must be "ema" or "raw", got "{weights}"')
    if path.is_dir():
        verify_checkpoint(path)
        with told_as_unreadable(path):
            tensors = read_tensors(path, lambda name: name.startswith("state_dict."))
        state, _ = as_lightning_states(tensors, [], [])
    else:
        content = read_checkpoint(path)
        if "state_dict" not in content:
            raise CheckpointError(
                f"{path} is no checkpoint of training: it has no state_dict. Released weights are for generate.py and "
                f"LatentDiffusion.from_released"
            )
        state = content["state_dict"]
    prefixes = {key.partition(".")[0] for key in state}
    prefix = "ema." if weights == "ema" and "ema" in prefixes else "network."
    found = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if not found:
        raise CheckpointError(f"{path} holds no weights of a network: none of its names begins with {prefix}")
    check_numbers(found, str(path))
    return found


def check_numbers(state: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError for tensors that hold no floating-point numbers, as weights do, of a kind that becomes any
    other."""
    others = [f"{name} ({tensor.dtype})" for name, tensor in state.items() if tensor.dtype not in OF_WEIGHTS]
    if others:
        raise CheckpointError(
            f"{source} holds no weights in {', '.join(others[:5])}: weights are floating-point numbers"
        )


def load_weights(network: nn.Module, state: dict[str, Tensor], source: str, into_nothing: bool = False) -> None:
    """Fills the network strictly; with `into_nothing` one on the meta device, which gets tensors of its own on the CPU.

    Raises CheckpointError listing every key that does not fit, and how.
    """
    check_numbers(state, source)
    own = network.state_dict()
    check_fits(own, state, source)
    if into_nothing:  # copies, because a file that is mapped into memory may change
        state = {name: value.to(own[name].dtype, copy=True) for name, value in state.items()}
    network.load_state_dict(state, strict=True, assign=into_nothing)


def check_fits(own: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError listing every name or shape in which a state dict is not like a network's own."""
    problems = [f"missing {key}" for key in sorted(own.keys() - state.keys())]
    problems += [f"unexpected {key}" for key in sorted(state.keys() - own.keys())]
    problems += [
        f"{key} is {list(state[key].shape)}, the network's is {list(own[key].shape)}"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    ]
    if problems:
        shown = "\n  ".join(problems[:20]) + (f"\n  ... and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise CheckpointError(f"{source} does not fit this network:\n  {shown}")
