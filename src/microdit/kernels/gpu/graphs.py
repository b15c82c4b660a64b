"""A step's forward and backward pass as one CUDA graph: the processor launches it at once instead of kernel by kernel.

A network has thousands of kernels, each of which a processor takes 10 to 50 microseconds to launch; small networks and
slow processors would leave the GPU idle most of the time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from microdit.kernels.gpu.casts import Differentiation

WARM_UPS = 2  # so that kernels are compiled and libraries have their memory before anything is recorded


class GraphedGradients:
    """`loss_of(batch, case)` gives the loss and what else is told of a step; `gradients` are by the network's weights.

    `case` is what `loss_of` depends on beside the numbers in a batch. One case and one set of shapes are recorded at a
    time: another one records anew. All results lie where the next replay overwrites them.
    """

    def __init__(self, network: nn.Module, loss_of: Callable[[Any, Any], tuple[Tensor, Any]]):
        self.differentiation, self.parameters = Differentiation(network, loss_of), list(network.parameters())
        self.recorded: Any = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.told: Any = None
        self.gradients: list[Tensor | None] = []

    def __call__(self, batch: Any, case: Any) -> Any:
        """What `loss_of` tells beside the loss, with the gradients of this batch in `gradients`."""
        given, structure = tree_flatten(batch)
        kind = (case, structure, [(x.shape, x.dtype) for x in given])
        if self.graph is None or self.recorded != kind:
            self.graph = None  # and its memory, before another takes as much
            self.graph = self.record(given, structure, case)
            self.recorded = kind
        torch._foreach_copy_(self.inputs, given)
        self.graph.replay()
        return self.told

    def record(self, given: list[Tensor], structure: Any, case: Any) -> torch.cuda.CUDAGraph:
        self.told, self.gradients = None, []
        self.inputs = [x.clone() for x in given]
        batch = tree_unflatten(self.inputs, structure)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self.differentiate(batch, case)
        torch.cuda.current_stream().wait_stream(beside)
        self.forget_gradients()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.told = self.differentiate(batch, case)
        self.gradients = [parameter.grad for parameter in self.parameters]
        self.forget_gradients()
        return graph

    def differentiate(self, batch: Any, case: Any) -> Any:
        self.forget_gradients()
        # Weights are cast inside the graph, each time anew: none may come from what was cast before.
        kind = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", kind, enabled=torch.is_autocast_enabled("cuda"), cache_enabled=False):
            return self.differentiation.run(batch, case)

    def forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
