"""From settings to Lightning's strategy: which processes there are, and how they share the work."""

import os
from datetime import timedelta
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from microdit.build import SettingsError
from microdit.training.checkpoint_files import CheckpointFiles
from microdit.training.settings import TrainerSettings
from microdit.training.sharded_strategy import ShardedStrategy


class CompressedDDP(DDPStrategy):
    """DDP whose gradients travel in bfloat16, on any device; Lightning's own option works on GPUs alone."""

    def configure_ddp(self) -> None:
        super().configure_ddp()
        assert isinstance(self.model, DistributedDataParallel)
        self.model.register_comm_hook(None, bf16_compress_hook)


def is_rank() -> bool:
    """Whether somebody (our own launcher, torchrun) made this process one of several that train together."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_rank_zero() -> bool:
    """Whether this process is alone, or the first of several ranks or machines: the one that writes and tells."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_NODEID", "0"))) == 0


def check_hardware(hardware: TrainerSettings) -> None:
    """Raises SettingsError when the devices asked for are not there, or not as many processes."""
    if hardware.accelerator == "gpu":
        there = torch.cuda.device_count()
        if there < hardware.devices:
            instead = f"trainer.devices={there}" if there else "trainer.accelerator=cpu for processes without GPUs"
            raise SettingsError(
                f"trainer.devices={hardware.devices} GPUs are asked for, torch finds {there} here. "
                f"Choose trainer=cpu, or {instead}"
            )
    if is_rank() and int(os.environ["WORLD_SIZE"]) != hardware.world_size:
        raise SettingsError(
            f"{os.environ['WORLD_SIZE']} processes were started, the settings ask for {hardware.nodes} x "
            f"{hardware.devices} (trainer.nodes x trainer.devices): make the two equal"
        )


def trainer_options(hardware: TrainerSettings, static_graph: bool) -> dict[str, Any]:
    """Lightning's arguments for devices, precision and strategy."""
    environment = TorchElasticEnvironment() if is_rank() else LightningEnvironment()
    plugins: list[Any] = [environment]
    strategy: Strategy | str = "auto"
    timeout = timedelta(minutes=hardware.collective_timeout_minutes)
    if hardware.sharded:
        strategy = ShardedStrategy(hardware.world_size, timeout)
    else:
        plugins.append(CheckpointFiles())
        if hardware.world_size > 1:
            kind = CompressedDDP if hardware.gradient_compression else DDPStrategy
            strategy = kind(
                timeout=timeout, static_graph=static_graph, gradient_as_bucket_view=True, broadcast_buffers=False
            )
    return {
        "accelerator": hardware.accelerator,
        "devices": hardware.devices,
        "num_nodes": hardware.nodes,
        "precision": hardware.precision,
        "strategy": strategy,
        "plugins": plugins,
    }


def peak_dtype(precision: str) -> torch.dtype:
    """The type that large products are computed in at a precision of Lightning's."""
    return torch.bfloat16 if precision.startswith("bf16") else torch.float32
