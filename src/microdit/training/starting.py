"""Starting from another run instead of from scratch: its weights, and the optimizer's memory if a recipe keeps it."""

from pathlib import Path

from torch import Tensor

from microdit.checkpoints import is_checkpoint, latest_checkpoint, network_weights, read_checkpoint
from microdit.model.dit import DiT
from microdit.stage_weights import move_weights
from microdit.training.settings import TrainingSettings

OptimizerStates = dict[str, dict[str, Tensor]]


def initial_checkpoint(init_from: str) -> Path:
    """The checkpoint that `init_from` names: itself, or the newest of a run. CheckpointError where there is none."""
    path = Path(init_from)
    return path if is_checkpoint(path) else latest_checkpoint(path)


def load_initial_weights(network: DiT, settings: TrainingSettings) -> None:
    """Fills the network from `init_from`, if the settings name one; CheckpointError says what does not fit."""
    if settings.init_from is not None:
        checkpoint = initial_checkpoint(settings.init_from)
        move_weights(network_weights(checkpoint, settings.init_weights), network, source=str(checkpoint))


def initial_optimizer(settings: TrainingSettings) -> OptimizerStates | None:
    """The optimizer's state by the names of the parameters, if `init_optimizer` wants it from `init_from`."""
    if settings.init_from is None or not settings.init_optimizer:
        return None
    content = read_checkpoint(initial_checkpoint(settings.init_from))
    states = content["optimizer_states"][0]["state"]
    return {name: states[number] for number, name in enumerate(content["parameter_names"]) if number in states}
