"""Starting from other weights instead of from scratch: a run's, with the optimizer's memory if a recipe keeps it, or a
released file's."""

from pathlib import Path

from torch import Tensor

from microdit.checkpoints import (
    CheckpointError,
    is_checkpoint,
    latest_checkpoint,
    network_weights,
    read_checkpoint,
)
from microdit.model.dit import DiT
from microdit.released import read_released
from microdit.stage_weights import move_weights
from microdit.training.settings import TrainingSettings

OptimizerStates = dict[str, dict[str, Tensor]]


def initial_checkpoint(init_from: str) -> Path:
    """What `init_from` names: a checkpoint, a released file, or the newest checkpoint of a run. CheckpointError where
    there is none."""
    path = Path(init_from)
    return path if is_checkpoint(path) else latest_checkpoint(path)


def is_released(path: Path) -> bool:
    """Whether a file holds weights alone, as released networks and export.py's files do."""
    return path.is_file() and path.suffix != ".ckpt"


def load_initial_weights(network: DiT, settings: TrainingSettings) -> None:
    """Fills the network from `init_from`, if the settings name one; CheckpointError says what does not fit."""
    if settings.init_from is not None:
        path = initial_checkpoint(settings.init_from)
        weights = read_released(path) if is_released(path) else network_weights(path, settings.init_weights)
        move_weights(weights, network, source=str(path))


def initial_optimizer(settings: TrainingSettings) -> OptimizerStates | None:
    """The optimizer's state by the names of the parameters, if `init_optimizer` wants it from `init_from`."""
    if settings.init_from is None or not settings.init_optimizer:
        return None
    path = initial_checkpoint(settings.init_from)
    if is_released(path):
        raise CheckpointError(f"{path} holds weights alone: set init_optimizer=false, or start from a run's checkpoint")
    content = read_checkpoint(path)
    states = content["optimizer_states"][0]["state"]
    return {name: states[number] for number, name in enumerate(content["parameter_names"]) if number in states}
