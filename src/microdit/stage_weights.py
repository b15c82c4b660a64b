"""Taking a network's weights from one stage of training to the next, where resolution and masking change."""

from collections.abc import Mapping

from torch import Tensor

from microdit.checkpoints import CheckpointError, load_weights
from microdit.model.dit import DiT

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
