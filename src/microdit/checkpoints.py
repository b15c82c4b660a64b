"""Reading a network's weights out of checkpoint files, safely and with errors that list what does not fit."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

STEP_IN_NAME = re.compile(r"step_(\d+)")


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, unreadable, or of another network."""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a torch file, tensors and plain values only: nothing in it can run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        raise CheckpointError(f"{path} cannot be read ({error}); use an earlier checkpoint") from error


def checkpoint_step(path: Path) -> int:
    """The training step that a checkpoint's name carries, -1 if it carries none."""
    found = STEP_IN_NAME.search(path.name)
    return int(found.group(1)) if found else -1


def checkpoints_of(run: Path) -> list[Path]:
    """A run's checkpoint files, oldest first."""
    return sorted(run.glob("checkpoints/step_*.ckpt"), key=checkpoint_step)


def latest_checkpoint(run: Path) -> Path:
    """A run's newest checkpoint. Raises CheckpointError when it has none."""
    found = checkpoints_of(run)
    if not found:
        raise CheckpointError(f"{run} has no checkpoints/step_*.ckpt yet: it ended before its first checkpoint")
    return found[-1]


def network_weights(path: Path, weights: str) -> dict[str, Tensor]:
    """The network's state dict from a checkpoint of training.

    `weights`: "ema" for the moving average where the checkpoint has one, "raw" for the trained weights.
    """
    if weights not in ("ema", "raw"):
        raise CheckpointError(f'weights must be "ema" or "raw", got "{weights}"')
    state = read_checkpoint(path)["state_dict"]
    prefixes = {key.partition(".")[0] for key in state}
    prefix = "ema." if weights == "ema" and "ema" in prefixes else "network."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def load_weights(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Fills the network strictly. Raises CheckpointError listing every key that does not fit, and how."""
    own = network.state_dict()
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
    network.load_state_dict(state, strict=True)
