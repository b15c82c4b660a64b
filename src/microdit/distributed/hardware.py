"""Where and how training runs: devices, processes, precision, how a batch is divided among them, and Lightning's
strategy for all of it."""

import math
import os
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Annotated, Any, Literal, NamedTuple

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from microdit.checkpoints.writing import CheckpointFiles
from microdit.distributed.sharded_strategy import ShardedStrategy
from microdit.kinds import Images, Limits, Positive, SettingsError, Steps

MOST_PROCESSES_A_CORE = 8
LEAST_CAPABILITY = (8, 9)  # of the first cards whose instructions multiply in float8
EIGHT_BITS = "trainer.precision=fp8 needs a GPU of compute capability 8.9 or more (Ada, Hopper or newer)"


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how it runs, and when it ends: after `max_steps` or `max_flops`, whichever comes first.

    `strategy` says how several devices share the work: "ddp" (each holds the whole network) or "fsdp" (each holds a
    part of it). `device_batch_size` is the most a device computes at once. `dollars_per_device_hour` turns seconds into
    the cost that result.json reports; `peak_tflops` is what MFU is a share of, measured on the spot if null.
    `activation_checkpointing` saves memory for time: blocks are computed again in the backward pass.

    With fsdp, `sharding` says among how many devices the network is divided: "full" among all, "hybrid" among those of
    a machine (HSDP), so that each machine holds a whole one and gradients alone travel between machines.
    `reshard_after_forward`: whether a block's weights are given back after its forward pass, and gathered again.
    """

    accelerator: Literal["cpu", "gpu"]
    nodes: Annotated[int, Limits(1, 100_000)]
    devices: Annotated[int, Limits(1, 10**6)]
    strategy: Literal["ddp", "fsdp"]
    precision: Literal["32-true", "bf16-mixed", "16-mixed", "fp8"]  # weights are float32: averages and updates need it
    max_steps: Steps
    max_flops: Positive | None
    device_batch_size: Images | None
    compile: bool | None
    gradient_compression: Literal["bf16"] | None
    max_skipped_steps: Annotated[int, Limits(0, 10**9)]
    collective_timeout_minutes: Annotated[float, Limits(0.01, 100_000)]
    log_every_n_steps: Steps
    validate_every_n_steps: Steps
    validation_batch_size: Images
    checkpoint_every_n_steps: Steps
    keep_checkpoints: Annotated[int, Limits(1, 10**9)]  # without any, a run cannot resume
    keep_every_n_steps: Steps | None
    peak_tflops: Positive | None
    dollars_per_device_hour: float
    activation_checkpointing: bool = False
    cuda_graphs: bool | None = None
    sharding: Literal["full", "hybrid"] = "full"
    reshard_after_forward: bool = True

    def __post_init__(self) -> None:
        if self.gradient_compression and (self.strategy != "ddp" or self.world_size == 1):
            raise SettingsError(
                "trainer.gradient_compression works between several devices with trainer.strategy=ddp; set it to null"
            )
        if self.precision == "fp8" and self.accelerator != "gpu":
            raise SettingsError(f"{EIGHT_BITS}, a CPU is none: choose trainer.precision=bf16-mixed")
        if self.strategy != "fsdp" and (self.sharding != "full" or not self.reshard_after_forward):
            raise SettingsError(
                "trainer.sharding and trainer.reshard_after_forward are of trainer.strategy=fsdp: choose it, or leave "
                "them at full and true"
            )
        if self.sharding == "hybrid" and (self.nodes == 1 or self.devices == 1):
            raise SettingsError(
                "trainer.sharding=hybrid shards inside a machine and copies between machines, and this is "
                f"{self.nodes} x {self.devices} (trainer.nodes x trainer.devices): it takes two machines of two "
                "devices at least; else trainer.sharding=full"
            )
        if self.cuda_graphs and (self.accelerator != "gpu" or self.world_size > 1):
            raise SettingsError(
                "trainer.cuda_graphs launches the steps of one GPU that trains alone: set it to null, or "
                "trainer.accelerator=gpu trainer.devices=1"
            )

    @property
    def world_size(self) -> int:
        """Devices of all nodes together: one process each."""
        return self.nodes * self.devices

    @property
    def halved(self) -> bool:
        """Whether products are computed in bfloat16, or, where they are large, in fewer bits."""
        return self.precision in ("bf16-mixed", "fp8")

    @property
    def compiles(self) -> bool:
        """Whether the network is compiled: by default on GPUs, where it pays."""
        return self.accelerator == "gpu" if self.compile is None else self.compile

    @property
    def graphed(self) -> bool:
        """Whether a step is launched as one CUDA graph: by default where one GPU trains alone and is compiled for."""
        alone = self.accelerator == "gpu" and self.world_size == 1
        return alone and self.compiles if self.cuda_graphs is None else self.cuda_graphs

    @property
    def sharded(self) -> bool:
        """Whether each device holds only a part of the network."""
        return self.strategy == "fsdp" and self.world_size > 1

    @property
    def parts(self) -> int:
        """Among how many devices the network is divided: one where each holds the whole."""
        if not self.sharded:
            return 1
        return self.devices if self.sharding == "hybrid" else self.world_size


class BatchDivision(NamedTuple):
    """`micro_batches` of `device_batch_size` images on each device make one step."""

    device_batch_size: int
    micro_batches: int


def divide_batch(global_batch_size: int, hardware: TrainerSettings) -> BatchDivision:
    """The division of the global batch. Raises SettingsError listing the divisions that are possible."""
    images, devices = global_batch_size, hardware.world_size
    share, remainder = divmod(images, devices)
    if remainder or not share:
        batches = sorted({max(devices, images - images % devices), images - images % devices + devices})
        raise SettingsError(
            f"a global batch of {images} images does not divide among {devices} devices. Possible: "
            f"{listed(divisors(images))} devices (trainer.devices times trainer.nodes), or a global batch of "
            f"{' or '.join(map(str, batches))} (resolution_stage.global_batch_size)"
        )
    device_batch_size = min(hardware.device_batch_size or share, share)
    if share % device_batch_size:
        raise SettingsError(
            f"a device's {share} images of the global batch ({images} on {devices} devices) do not divide into "
            f"micro-batches of {device_batch_size}. Possible: trainer.device_batch_size={listed(divisors(share))}"
        )
    return BatchDivision(device_batch_size, share // device_batch_size)


def divisors(number: int) -> list[int]:
    small = [candidate for candidate in range(1, math.isqrt(number) + 1) if number % candidate == 0]
    return sorted({*small, *(number // candidate for candidate in small)})


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


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
        if hardware.precision == "fp8":
            check_float8(torch.cuda.get_device_capability(), torch.cuda.get_device_name())
    cores = os.cpu_count() or 1
    if hardware.accelerator == "cpu" and hardware.devices > MOST_PROCESSES_A_CORE * cores:
        raise SettingsError(
            f"trainer.devices={hardware.devices} processes on {cores} cores cannot be meant: "
            f"{MOST_PROCESSES_A_CORE * cores} are the most"
        )
    if is_rank() and int(os.environ["WORLD_SIZE"]) != hardware.world_size:
        raise SettingsError(
            f"{os.environ['WORLD_SIZE']} processes were started, the settings ask for {hardware.nodes} x "
            f"{hardware.devices} (trainer.nodes x trainer.devices): make the two equal"
        )


def check_float8(capability: tuple[int, int], card: str) -> None:
    """Raises SettingsError where this card, or this installation, cannot multiply in float8."""
    if capability < LEAST_CAPABILITY:
        told = ".".join(map(str, capability))
        raise SettingsError(f"{EIGHT_BITS}, {card} has {told}: choose trainer.precision=bf16-mixed")
    if find_spec("torchao") is None:
        raise SettingsError(
            "trainer.precision=fp8 is torchao's, which is missing: pip install 'microdit[fp8]', or choose "
            "trainer.precision=bf16-mixed"
        )


def trainer_options(hardware: TrainerSettings, static_graph: bool) -> dict[str, Any]:
    """Lightning's arguments for devices, precision and strategy."""
    environment = TorchElasticEnvironment() if is_rank() else LightningEnvironment()
    plugins: list[Any] = [environment]
    strategy: Strategy | str = "auto"
    timeout = timedelta(minutes=hardware.collective_timeout_minutes)
    if hardware.sharded:
        strategy = ShardedStrategy(hardware.world_size, hardware.parts, timeout)
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
        "precision": "bf16-mixed" if hardware.precision == "fp8" else hardware.precision,  # around large products
        "strategy": strategy,
        "plugins": plugins,
    }


def peak_dtype(precision: str) -> torch.dtype:
    """The type of the large product that MFU is a share of. That of fp8 is bfloat16, so that both can be compared."""
    return torch.bfloat16 if precision in ("bf16-mixed", "fp8") else torch.float32
