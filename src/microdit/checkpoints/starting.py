"""Starting from other weights instead of from scratch: a run's, with the optimizer's memory if a recipe keeps it, or a
released file's; also where resolution and masking change from one stage to the next."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from microdit.checkpoints.export import WEIGHTS_FILE
from microdit.checkpoints.from_hub import from_hub, is_on_hub
from microdit.checkpoints.reading import (
    CheckpointError,
    latest_checkpoint,
    load_weights,
    network_weights,
    read_checkpoint,
)
from microdit.checkpoints.released import read_released
from microdit.model.dit import DiT
from microdit.runs.folder import is_checkpoint

POSITIONS = "pos_embed"
MIXER = "patch_mixer."
PATH = "token_path."


def move_weights(state: Mapping[str, Tensor], network: DiT, source: str) -> None:
    """Fills `network` with the weights of an earlier stage, strictly; `source` names them in messages.

    Positions are no weights: the network keeps its own table, so 256 px goes on at 512 px. Whether patches are dropped
    is no property of a network: one trained with masked patches goes on without, as it is.

    Raises CheckpointError when the two differ in latent channels or in the layers of their masking methods, or for
    anything else that does not fit, key by key. Then nothing was loaded.
    """
    patches = state.get("x_embedder.proj.weight")
    if patches is not None and patches.shape[1] != network.in_channels:
        raise CheckpointError(
            f"{source} is a network for {patches.shape[1]} latent channels and this one is for {network.in_channels}: "
            f"latents of another autoencoder mean something else, so such a network is trained from scratch. Take the "
            f"autoencoder with {patches.shape[1]} channels, or leave these weights"
        )
    for prefix, what in ((MIXER, "a patch-mixer"), (PATH, "layers of its masking method's own")):
        there = any(key.startswith(prefix) for key in state)
        here = any(key.startswith(prefix) for key in network.state_dict())
        if there != here:
            has, lacks = (source, "this network") if there else ("this network", source)
            raise CheckpointError(
                f"{has} has {what} and {lacks} has none: keep the masking method of {source}; to train it on all "
                f"patches from here, set mask_ratio=none and leave masking as it was"
            )
    load_weights(network, {**state, POSITIONS: network.pos_embed}, source)


OptimizerStates = dict[str, dict[str, Tensor]]


def initial_checkpoint(init_from: str) -> Path:
    """What `init_from` names: a checkpoint, a released file, the weights of a saved folder or of OWNER/NAME on the hub,
    or the newest checkpoint of a run. CheckpointError where there is none."""
    path = from_hub(init_from) if is_on_hub(init_from) else Path(init_from)
    if (path / WEIGHTS_FILE).is_file():
        return path / WEIGHTS_FILE
    return path if is_checkpoint(path) else latest_checkpoint(path)


def is_released(path: Path) -> bool:
    """Whether a file holds weights alone, as released networks and export.py's files do."""
    return path.is_file() and path.suffix != ".ckpt"


def load_initial_weights(network: DiT, init_from: str, weights: str) -> None:
    """Fills the network from what `init_from` names; of a run "ema" or "raw" `weights`. CheckpointError says what does
    not fit."""
    path = initial_checkpoint(init_from)
    state = read_released(path) if is_released(path) else network_weights(path, weights)
    move_weights(state, network, source=str(path))


def initial_optimizer(init_from: str) -> OptimizerStates:
    """The optimizer's state of what `init_from` names, by parameters' names. CheckpointError where there is none."""
    path = initial_checkpoint(init_from)
    if is_released(path):
        raise CheckpointError(f"{path} holds weights alone: set init_optimizer=false, or start from a run's checkpoint")
    content = read_checkpoint(path)
    states = content["optimizer_states"][0]["state"] if "optimizer_states" in content else {}
    found = {name: states[number] for number, name in enumerate(content.get("parameter_names", ())) if number in states}
    if not found or not all(isinstance(value, Tensor) for state in found.values() for value in state.values()):
        raise CheckpointError(f"{path} holds no optimizer's state of tensors: set init_optimizer=false")
    return found
