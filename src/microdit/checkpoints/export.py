"""Weights for others, without what only training needs."""

from pathlib import Path

from safetensors.torch import save_file

from microdit.checkpoints.reading import latest_checkpoint, network_weights
from microdit.runs.folder import checkpoint_step, is_checkpoint


def export_weights(run: Path, weights: str = "ema", output: Path | None = None) -> Path:
    """Writes the network of a run (its newest checkpoint) or of one checkpoint as safetensors; returns the file's path.

    The keys are those of the released checkpoints, buffers included. `weights`: "ema" for the moving average where
    there is one, "raw" for the trained weights. Raises CheckpointError for what cannot be read.
    """
    checkpoint = run if is_checkpoint(run) else latest_checkpoint(run)
    step = checkpoint_step(checkpoint)
    output = output or checkpoint.parent.parent / f"{weights}_step_{step:07d}.safetensors"
    state = {name: tensor.contiguous() for name, tensor in network_weights(checkpoint, weights).items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    save_file(state, partial, metadata={"step": str(step), "weights": weights})
    partial.replace(output)
    return output
