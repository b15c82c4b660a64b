"""Every file that holds weights: ours in one piece or sharded, released ones, from stage to stage, out to others."""

from microdit.checkpoints.reading import (
    CheckpointError,
    checkpoint_metadata,
    latest_checkpoint,
    network_weights,
    read_checkpoint,
)

__all__ = ["CheckpointError", "checkpoint_metadata", "latest_checkpoint", "network_weights", "read_checkpoint"]
