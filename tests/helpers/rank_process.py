"""One rank of a test's run, in a process that has the libraries loaded already."""

import os

from rich.console import Console

from microdit.training.run import train


def train_as_rank(rank: int, world_size: int, port: int, settings, checkpoint) -> None:
    os.environ |= {
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
    train_alone(settings, checkpoint)


def train_alone(settings, checkpoint) -> None:
    train(settings, Console(quiet=True), checkpoint)
