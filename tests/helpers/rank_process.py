"""One rank of a test's run, in a process that has the libraries loaded already."""

import os

from rich.console import Console

from microdit.training.run import train


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """What torchrun tells a rank; at `port` is a store that the ranks' parent keeps."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }


def train_as_rank(rank: int, world_size: int, port: int, settings, checkpoint) -> None:
    os.environ |= rank_environment(rank, world_size, port)
    train_alone(settings, checkpoint)


def train_alone(settings, checkpoint) -> None:
    train(settings, Console(quiet=True), checkpoint)
