"""Compiling a network for the device that it runs on: the same numbers, sooner."""

from torch import nn

from microdit.kernels.cpu.operations import load_fused_operations
from microdit.kernels.gpu.operations import gpu_operations
from microdit.model.operations import use_operations


def compile_network(network: nn.Module, device_type: str) -> None:
    """Attention, modulated norms, gates and sums of experts by functions that are compiled for the kind of device.

    They are the network's, and a copy's of it. Raises CompilerError where they cannot be compiled for a "cpu".
    """
    use_operations(network, load_fused_operations() if device_type == "cpu" else gpu_operations())
