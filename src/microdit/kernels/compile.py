"""Compiling a network for the device that it runs on: the same numbers, sooner."""

from torch import nn

from microdit.kernels.cpu.operations import CompilerError, load_fused_operations
from microdit.kernels.gpu.operations import gpu_operations, load_kernels
from microdit.model.operations import use_operations


def compile_network(network: nn.Module, device_type: str) -> None:
    """Attention, modulated norms, gates and sums of experts by functions that are compiled for the kind of device.

    They are the network's, and a copy's of it. Raises CompilerError where they cannot be compiled.
    """
    if device_type == "cpu":
        use_operations(network, load_fused_operations())
        return
    try:
        load_kernels()
    except ImportError as error:
        ways_out = "pip install triton, or do without: compile=false, trainer.compile=false in training"
        raise CompilerError(
            f"operations are compiled for a GPU by Triton, which is not there: {error}. {ways_out}"
        ) from error
    use_operations(network, gpu_operations())
