"""Whatever ends a run, and whoever goes on with it: the result is that of a run that nothing disturbed."""

import random
import signal
import time

import pytest
import torch
from rich.console import Console

from microdit.checkpoints.reading import checkpoint_metadata, network_weights
from microdit.runs.folder import checkpoints_of
from microdit.training.run import train

DEATHS = 10
STEPS = 48
RUN = [
    f"trainer.max_steps={STEPS}",
    "resolution_stage.global_batch_size=8",
    "resolution_stage.learning_rate=1e-4",  # what is summed in another order must not grow to a choice of other experts
    "trainer.validation_batch_size=2",
    "trainer.validate_every_n_steps=50",
    "trainer.checkpoint_every_n_steps=4",
    "callbacks.samples.every_n_steps=100",
]
WORLDS = {
    "one": [],
    "ddp": ["trainer.devices=2"],
    "fsdp": ["trainer.devices=2", "trainer.strategy=fsdp"],
}


def rows(run) -> int:
    path = run / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def end(ranks, how: str) -> None:
    """Ends a run from outside, as a machine, a scheduler or the kernel would."""
    if how == "machine":
        for rank in ranks:
            rank.kill()
    elif how == "scheduler":
        for rank in ranks:
            if rank.is_alive():
                rank.terminate()
    elif how == "scheduler, one rank only":
        ranks[-1].terminate()
    else:
        ranks[-1].kill()
    deadline = time.monotonic() + 2  # one that waits for a rank that never came is ended by the launcher
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
        rank.kill()
        rank.join()


@pytest.mark.parametrize("seed", [0])
def test_ten_deaths_change_nothing(run_settings, start_ranks, logged, tmp_path, seed):
    chance = random.Random(seed)
    train(run_settings(*RUN, output=tmp_path / "undisturbed"), Console(quiet=True))
    run, deaths = tmp_path / "run", []
    while len(deaths) < DEATHS:
        world = chance.choice(["one", "ddp", "fsdp", "fsdp"])
        how = chance.choice(["machine", "scheduler", "scheduler, one rank only", "a rank is killed"])
        found = checkpoints_of(run)
        ranks = start_ranks(run_settings(*RUN, *WORLDS[world], output=run), found[-1] if found else None)
        alive_at, target = time.monotonic(), chance.randint(0, 4 * (len(deaths) + 1))
        while rows(run) < target and all(rank.is_alive() for rank in ranks):
            assert time.monotonic() - alive_at < 120
            time.sleep(0.002)
        end(ranks, how)
        deaths.append((world, how, rows(run)))
    ranks = start_ranks(run_settings(*RUN, *WORLDS["ddp"], output=run), checkpoints_of(run)[-1])
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0, 0], deaths

    expected, losses = logged(tmp_path / "undisturbed"), logged(run)
    assert sorted(losses) == list(range(STEPS))
    assert len((run / "metrics.csv").read_text().splitlines()) == 1 + STEPS  # no step twice
    assert max(abs(losses[step] - expected[step]) for step in expected) < 1e-5, deaths
    newest = checkpoints_of(run)[-1]
    assert checkpoint_metadata(newest)["samples_seen"] == STEPS * 8
    a, b = (network_weights(path, "raw") for path in (checkpoints_of(tmp_path / "undisturbed")[-1], newest))
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("world", ["one", "ddp", "fsdp"])
def test_a_signal_saves_the_step_it_comes_in(run_settings, start_ranks, tmp_path, world):
    settings = run_settings(*RUN, "trainer.checkpoint_every_n_steps=1000", *WORLDS[world], output=tmp_path)
    ranks = start_ranks(settings)
    while rows(tmp_path) < 5:
        assert ranks[0].is_alive()
        time.sleep(0.002)
    for rank in ranks:
        rank.terminate()
    for rank in ranks:
        rank.join(60)
        rank.kill()
        assert rank.exitcode not in (None, 0, -signal.SIGTERM)
    (saved,) = checkpoints_of(tmp_path)
    assert 5 <= checkpoint_metadata(saved)["step"] == rows(tmp_path) < STEPS
