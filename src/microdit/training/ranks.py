"""Starting one process a device, and seeing that they end together.

Each rank is `python -m microdit.training.rank FOLDER`: it reads the run's config.yaml and needs no command line of the
user's, so sweeps, resumed runs and stages start in the same way. The ranks' environment is the one torchrun gives.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from rich.console import Console

from microdit.build import SettingsError
from microdit.training.resuming import to_resume
from microdit.training.settings import TrainerSettings
from microdit.training.stopping import REQUEUE_CODE, SIGNALS, PreemptedError

SECONDS_BETWEEN_LOOKS = 0.1
SECONDS_TO_FOLLOW = 20  # ranks that outlive one that failed by more are killed


class RanksError(RuntimeError):
    """A rank failed, and with it the run; the message is that of the first one that did."""


class Node(NamedTuple):
    """This machine among those of the run, and where the first of them is."""

    number: int
    address: str
    port: int


def run_ranks(folder: Path, hardware: TrainerSettings, checkpoint: Path | None, console: Console) -> None:
    """Trains in one process a device of this machine and waits for their end.

    Rank zero talks to the terminal, the others to FOLDER/logs/rank_N.txt. A signal that asks to stop is passed on, and
    the ranks save before they end: PreemptedError. When a rank fails the others end within SECONDS_TO_FOLLOW:
    RanksError. When this process dies, the ranks do too.
    """
    node = this_node(hardware)
    store = None
    if node.number == 0:  # where the ranks find each other; a port of 0 is any that is free
        store = torch.distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            node.address, node.port, is_master=True, wait_for_workers=False
        )
        node = node._replace(port=store.port)
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    for old in logs.glob("rank_*_error.json"):
        old.unlink(missing_ok=True)
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    before = {number: signal.signal(number, note) for number in SIGNALS}
    ranks: dict[int, subprocess.Popen[bytes]] = {}
    try:
        for local_rank in range(hardware.devices):
            rank = node.number * hardware.devices + local_rank
            ranks[rank] = start_rank(rank, local_rank, node, hardware, folder, checkpoint)
        wait_for_all(ranks, asked, logs, console)
    finally:
        for process in ranks.values():
            process.kill()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    del store


def this_node(hardware: TrainerSettings) -> Node:
    """This machine's place in the run. Raises SettingsError where nobody says which of several it is."""
    if hardware.nodes == 1:
        return Node(0, "127.0.0.1", 0)
    if "SLURM_NODEID" not in os.environ:
        raise SettingsError(
            f"trainer.nodes={hardware.nodes}: on several machines start with torchrun or SLURM (docs/many_gpus.md)"
        )
    if os.environ.get("SLURM_STEP_NUM_TASKS") != os.environ.get("SLURM_STEP_NUM_NODES"):
        raise SettingsError("start one task a node (srun --ntasks-per-node=1): it starts a process for each device")
    address = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_JOB_NODELIST"])
    port = 15_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000  # the same on all nodes of a job
    return Node(int(os.environ["SLURM_NODEID"]), address, port)


def start_rank(
    rank: int, local_rank: int, node: Node, hardware: TrainerSettings, folder: Path, checkpoint: Path | None
) -> subprocess.Popen[bytes]:
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // hardware.devices)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "GROUP_RANK": str(node.number),
        "WORLD_SIZE": str(hardware.world_size),
        "LOCAL_WORLD_SIZE": str(hardware.devices),
        "MASTER_ADDR": node.address,
        "MASTER_PORT": str(node.port),
        "TORCHELASTIC_RUN_ID": "microdit",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is in the launcher, as with torchrun
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    command = [sys.executable, "-m", "microdit.training.rank", str(folder)]
    command += [] if checkpoint is None else ["--checkpoint", str(checkpoint)]
    # The pipe closes when this process ends in any way, and the rank then ends too.
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "start_new_session": True}
    if rank == 0:
        return subprocess.Popen[bytes](command, env=environment, **streams)
    with (folder / "logs" / f"rank_{rank}.txt").open("ab") as log:
        return subprocess.Popen[bytes](command, env=environment, stdout=log, stderr=subprocess.STDOUT, **streams)


def wait_for_all(ranks: dict[int, subprocess.Popen[bytes]], asked: list[int], logs: Path, console: Console) -> None:
    """Returns when every rank ended well. Passes a wish to stop on, and ends all when one fails."""
    passed_on, first_failure_at = False, 0.0
    ended: dict[int, int] = {}  # exit codes of the ranks that ended by themselves
    while None in [process.poll() for process in ranks.values()]:
        ended = {rank: process.returncode for rank, process in ranks.items() if process.returncode is not None}
        if asked and not passed_on:
            passed_on = True
            console.print("asked to stop: saving a checkpoint first", highlight=False)
            for process in ranks.values():
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
        if any(ended.values()):
            first_failure_at = first_failure_at or time.monotonic()
            if time.monotonic() - first_failure_at > SECONDS_TO_FOLLOW:
                break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    else:
        ended = {rank: process.returncode for rank, process in ranks.items()}
    failed = {rank: code for rank, code in ended.items() if code}
    if not failed:
        return
    stopped = {REQUEUE_CODE, -signal.SIGTERM} if asked else {REQUEUE_CODE}  # SIGTERM kills one that has just started
    if stopped.issuperset(failed.values()):
        raise PreemptedError(
            first_error(logs) or f"stopped before the first step; go on with resume={to_resume(logs.parent)}",
            asked[0] if asked else None,
        )
    # What the others say when one is killed is that it is gone; where none was, the first to speak knows best.
    silent = f"ranks {list(failed)} ended with codes {list(failed.values())}; what they said is above and in {logs}"
    raise RanksError(who_was_killed(failed, logs.parent) or first_error(logs) or silent)


def who_was_killed(codes: dict[int, int], run: Path) -> str | None:
    """Which of the ranks that ended first was killed from outside, and by what."""
    for rank, code in codes.items():
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (by the system, if its memory ran out)" if -code == signal.SIGKILL else ""
            then = f"Go on with resume={to_resume(run)}"
            return f"rank {rank} was killed by {name}{hint}, and the others were ended. {then}"
    return None


def first_error(logs: Path) -> str | None:
    """What the rank said that failed first of those that could say something."""
    told = [json.loads(path.read_text()) for path in logs.glob("rank_*_error.json")]
    if not told:
        return None
    first = min(told, key=lambda error: error["time"])
    return f"{first['error']} (rank {first['rank']})"
