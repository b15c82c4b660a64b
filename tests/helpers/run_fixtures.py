"""A run of training small enough to be repeated in every test: 16 px shapes, a network of two narrow blocks."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compositions import plain
from rank_process import train_alone, train_as_rank
from small_run import QUICK_PICTURES, SMALL_RUN
from warm_processes import warm_processes

from microdit.training.settings import TrainingSettings, training_settings

SMALL = [
    "name=test",
    *SMALL_RUN,
    *QUICK_PICTURES,
    "metrics=none",
    "resolution_stage.warmup_steps=2",
    "trainer.max_steps=8",
    "trainer.validate_every_n_steps=4",
    "trainer.checkpoint_every_n_steps=3",
    "callbacks.samples.every_n_steps=8",
    "logger=csv",
]


@pytest.fixture(scope="session")
def data_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def run_settings(data_root, tmp_path):
    """Settings of a small run: run_settings("mask_ratio=p50", output=folder)."""

    def compose(*overrides: str, output: Path = tmp_path / "run") -> TrainingSettings:
        config = plain(*SMALL, f"paths.data_root={data_root}", *overrides)
        return training_settings(config, output, {"autoencoder": "pixel", "text_encoder": "words"})

    return compose


@pytest.fixture(scope="session")
def start_ranks() -> Callable[..., list[Any]]:
    """start_ranks(settings, checkpoint=None): one real process a device, which has loaded the libraries already."""
    processes = warm_processes()
    stores = []  # where the ranks find each other, for as long as they live

    def start(settings: TrainingSettings, checkpoint: Path | None = None) -> list[Any]:
        world_size = settings.trainer.world_size
        if world_size == 1:
            ranks = [processes.Process(target=train_alone, args=(settings, checkpoint))]
        else:
            stores.append(torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
            ranks = [
                processes.Process(target=train_as_rank, args=(rank, world_size, stores[-1].port, settings, checkpoint))
                for rank in range(world_size)
            ]
        for rank in ranks:
            rank.start()
        return ranks

    return start


@pytest.fixture(scope="session")
def train_in_ranks(start_ranks) -> Callable[..., None]:
    """The run of these settings to its end, one process a device."""

    def train(settings: TrainingSettings, checkpoint: Path | None = None) -> None:
        ranks = start_ranks(settings, checkpoint)
        for rank in ranks:
            rank.join(120)
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
        assert codes == [0] * len(ranks)

    return train


@pytest.fixture(scope="session")
def run_as_ranks() -> Callable[..., list[int]]:
    """run_as_ranks(function, 2, ...): function(rank, 2, port, ...) in real processes that find each other; their exit
    codes."""
    processes = warm_processes()

    def run(function: Callable[..., None], world_size: int, *arguments: Any) -> list[int]:
        store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        ranks = [
            processes.Process(target=function, args=(rank, world_size, store.port, *arguments))
            for rank in range(world_size)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(240)
        codes = [rank.exitcode for rank in ranks]
        for rank in ranks:
            rank.kill()
        return codes

    return run


def column(run: Path, name: str = "train/loss") -> dict[int, float]:
    """What a run logged under a name, by step."""
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


@pytest.fixture(scope="session")
def logged() -> Callable[..., dict[int, float]]:
    """logged(run, "train/loss"): the values by step."""
    return column
