"""One rank of a test's run, in a process that has the libraries loaded already."""

import os

from rich.console import Console

from microdit.training.run import train


def rank_environment(rank: int, world_size: int, port: int, devices: int | None = None) -> dict[str, str]:
    """What torchrun tells a rank, on machines of so many `devices` (None: on one machine); at `port` is a store that
    the ranks' parent keeps."""
    devices = devices or world_size
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank % devices),
        "GROUP_RANK": str(rank // devices),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def train_as_rank(rank: int, world_size: int, port: int, settings, checkpoint) -> None:
    os.environ |= rank_environment(rank, world_size, port, settings.trainer.devices)
    train_alone(settings, checkpoint)


def train_alone(settings, checkpoint) -> None:
    train(settings, Console(quiet=True), checkpoint)
