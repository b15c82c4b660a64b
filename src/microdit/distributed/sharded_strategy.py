"""FSDP2 under Lightning, with checkpoints that all ranks write in the background."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh

from microdit.checkpoints.reading import TO_GO_ON, CheckpointError, read_checkpoint, read_rest, verify_checkpoint
from microdit.checkpoints.sharded import first_of, read_into, tensor_shapes, write_closing_files
from microdit.checkpoints.writing import complete, discard
from microdit.distributed.sharding import fill
from microdit.files import partial_name


class ShardedStrategy(ModelParallelStrategy):
    """Every rank holds its part of weights, gradients, optimizer state and moving average: one of `parts`, each of
    which as many ranks have as there are copies of the whole.

    Saving copies the parts to memory and writes them while training goes on; `settle` waits for that. Loading takes
    folders of any number of ranks, and single files.
    """

    def __init__(self, ranks: int, parts: int, timeout: timedelta):
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, timeout=timeout)
        self.copies, self.parts = ranks // parts, parts
        self.writer = ThreadPoolExecutor(1, "checkpoint")
        self.saving: Future[None] | None = None

    def setup_environment(self) -> None:
        super().setup_environment()
        # A group of its own: what the writers tell each other must not mix with training.
        self.writers: Any = torch.distributed.new_group(backend="gloo", timeout=self._timeout)
        self.sharding_mesh = self.device_mesh["data_parallel"]
        if self.copies > 1:  # ranks are numbered machine by machine
            shape, names = (self.copies, self.parts), ("copies", "parts")
            self.sharding_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return {}  # save_checkpoint takes the tensors itself

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        if self.saving is not None:
            self.saving.result()
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.tensors().items()}
        rest = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
        rest["optimizer_groups"] = self.optimizers[0].state_dict()["param_groups"]
        self.saving = self.writer.submit(self.write, copies, rest, Path(filepath))

    def write(self, tensors: dict[str, Tensor], rest: dict[str, Any], path: Path) -> None:
        partial = partial_name(path)
        if self.is_global_zero:
            discard(partial)  # of a run that was killed while it wrote
        torch.distributed.barrier(self.writers)
        try:
            save(tensors, storage_writer=FileSystemWriter(partial), process_group=self.writers)
            if self.is_global_zero:
                write_closing_files(partial, rest, rest["metadata"])
                complete(partial, path)
        except BaseException:  # torch's CheckpointException is no Exception
            if self.is_global_zero:
                discard(partial)
            raise

    def settle(self) -> BaseException | None:
        """Waits until the checkpoint that is being written has its name; returns what went wrong."""
        if self.saving is None:
            return None
        saving, self.saving = self.saving, None
        failure = saving.exception()
        return first_of(failure) if isinstance(failure, CheckpointException) else failure

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(checkpoint_path)
        if not path.is_dir():
            return self.load_file(path)
        self.verify(path)
        saved = tensor_shapes(path)
        self.make_room({name: (kind.size, kind.properties.dtype) for name, kind in saved.items()})
        read_into(self.tensors(), path, alone=False)
        rest = read_rest(path, TO_GO_ON)
        self.load_groups(rest["optimizer_groups"])
        return rest

    def load_file(self, path: Path) -> dict[str, Any]:
        """From a file that one process wrote: every rank takes its parts of it."""
        rest = read_checkpoint(path, TO_GO_ON)
        state, (optimizer,) = rest.pop("state_dict"), rest.pop("optimizer_states")
        saved = {f"state_dict.{name}": tensor for name, tensor in state.items()}
        for number, parameter in enumerate(rest["parameter_names"]):
            own = optimizer["state"].get(number, {})
            saved |= {f"optimizer.{parameter}.{name}": tensor for name, tensor in own.items()}
        self.make_room({name: (tensor.shape, tensor.dtype) for name, tensor in saved.items()})
        for name, tensor in self.tensors().items():
            fill(tensor, saved[name])
        self.load_groups(optimizer["param_groups"])
        return rest

    def load_groups(self, groups: list[dict[str, Any]]) -> None:
        for group, saved in zip(self.optimizers[0].param_groups, groups, strict=True):
            group |= {name: value for name, value in saved.items() if name != "params"}

    def verify(self, path: Path) -> None:
        """Rank zero reads every byte; all raise CheckpointError where it finds one that is not what was written."""
        failure = None
        if self.is_global_zero:
            try:
                verify_checkpoint(path)
            except CheckpointError as error:
                failure = str(error)
        if failure := self.broadcast(failure):
            raise CheckpointError(failure)

    def parameters(self) -> list[tuple[str, Tensor]]:
        """The optimizer's parameters, in its order, by their names in the module."""
        assert self.lightning_module is not None
        names = {id(parameter): name for name, parameter in self.lightning_module.named_parameters()}
        return [(names[id(p)], p) for group in self.optimizers[0].param_groups for p in group["params"]]

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by the name it has in a checkpoint."""
        assert self.lightning_module is not None
        found = {f"state_dict.{name}": tensor for name, tensor in self.lightning_module.state_dict().items()}
        for name, parameter in self.parameters():
            state = self.optimizers[0].state.get(parameter, {})
            found |= {f"optimizer.{name}.{what}": tensor for what, tensor in state.items()}
        return found

    def make_room(self, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> None:
        """Gives the optimizer the state that a checkpoint has, still zero; a new optimizer has none."""
        for name, parameter in self.parameters():
            prefix = f"optimizer.{name}."
            for what in (key.removeprefix(prefix) for key in shapes if key.startswith(prefix)):
                shape, dtype = shapes[prefix + what]
                like = parameter.detach() if shape == parameter.shape else torch.empty(shape, device=parameter.device)
                self.optimizers[0].state[parameter][what] = torch.zeros_like(like, dtype=dtype)
