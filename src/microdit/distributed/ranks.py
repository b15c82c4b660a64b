"""Starting one process a device through torch's elastic launcher, and saying what became of them.

Each rank that trains is `python -m microdit.training.rank LAUNCHER FOLDER`: it reads the run's config.yaml and needs no
command line of the user's, so sweeps, resumed runs and stages start in the same way. Those that evaluate are
`microdit.commands.evaluation_rank`.
"""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from rich.console import Console
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from microdit.kinds import SettingsError
from microdit.progress import visible
from microdit.runs.folder import LOGS, to_resume

SECONDS_BETWEEN_LOOKS = 0.1

# What SLURM and most schedulers send some time before they kill. submitit asks for SIGUSR2.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
REQUEUE_CODE = 75  # EX_TEMPFAIL: nothing is wrong, run it again


class PreemptedError(RuntimeError):
    """The run was told to stop and saved a checkpoint: it is to be started again, with exit code REQUEUE_CODE.

    `signal_number` is what it was told with; None where another process was told.
    """

    def __init__(self, message: str, signal_number: int | None = None):
        super().__init__(message)
        self.signal_number = signal_number


class RanksError(RuntimeError):
    """A rank failed, and with it the run; the message is that of the first one that did."""


class Machines(Protocol):
    """How many machines there are, and how many processes on each."""

    @property
    def nodes(self) -> int: ...
    @property
    def devices(self) -> int: ...


class Job(NamedTuple):
    """What every rank does: MODULE, called with the launcher's process number and these arguments. `stopping`: what is
    said when it is asked to stop; `then`: how to go on with it."""

    module: str
    arguments: Sequence[str]
    stopping: str
    then: str


def train_in_ranks(folder: Path, hardware: Machines, checkpoint: Path | None, console: Console) -> None:
    """Trains the run in `folder` as `run_ranks` has it, with logs in FOLDER/logs."""
    arguments = [str(folder), *([] if checkpoint is None else [str(checkpoint)])]
    then = f"Go on with resume={to_resume(folder)}"
    job = Job("microdit.training.rank", arguments, "asked to stop: saving a checkpoint first", then)
    run_ranks(job, folder / LOGS, hardware, console)


def run_ranks(job: Job, logs: Path, hardware: Machines, console: Console) -> None:
    """Does a job in one process a device of this machine and waits for their end.

    Rank zero talks to the terminal, the others to files below LOGS/started_.... A signal that asks to stop is passed
    on, and the ranks take the time they need to save: PreemptedError. When a rank fails the others are ended:
    RanksError. When this process dies, the ranks do too (`training/rank.py` sees to that).
    """
    rendezvous = meeting_place(hardware)
    logs.mkdir(parents=True, exist_ok=True)
    first = int(rendezvous.get("rank", 0)) * hardware.devices
    python, environment = python_of_a_rank(job.module)
    os.environ.update(environment)
    agent = LocalElasticAgent(
        WorkerSpec(
            role="rank",
            local_world_size=hardware.devices,
            entrypoint=sys.executable,
            args=(*python, os.getpid(), *job.arguments),
            rdzv_handler=get_rendezvous_handler(rendezvous),
            max_restarts=0,
            monitor_interval=SECONDS_BETWEEN_LOOKS,
        ),
        DefaultLogsSpecs(str(logs), {n: Std.ALL if first + n else Std.NONE for n in range(hardware.devices)}),
    )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it has to say, we say
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"  # of the others it would make the ranks' end in 30 s
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // hardware.devices)))
    asked: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        if not asked:
            console.print(job.stopping, highlight=False)
        asked.append(number)
        for worker in agent.get_worker_group().workers:
            with suppress(ProcessLookupError, TypeError):  # it has ended, or is only about to begin
                os.kill(worker.id, signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        failures: Mapping[int, ProcessFailure] = agent.run().failures  # pyright: ignore[reportAttributeAccessIssue]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    words = words_of(logs, rendezvous.run_id)
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    if codes and not (asked and set(codes.values()) == {-signal.SIGTERM}):  # which kills one that has just started
        # What the others say when one is killed is that it is gone; where none was, the first to speak knows best.
        said = min(words, key=lambda word: word["time"], default=None)
        silent = f"ranks {list(codes)} ended with codes {list(codes.values())}; what they said is above and in {logs}"
        spoken = silent if said is None else f"{said['error']} (rank {said['rank']})"
        raise RanksError(who_was_killed(codes, job.then) or spoken)
    if codes or words:
        stopped = f"stopped. {job.then}"
        raise PreemptedError(words[0]["error"] if words else stopped, asked[0] if asked else None)


def python_of_a_rank(module: str) -> tuple[list[str], dict[str, str]]:
    """What Python is told to become a rank: arguments, and its environment. It finds the modules that this process
    finds, and none in the folder that it is started in, which may be a run of somebody else's."""
    return ["-P", "-m", module], {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def meeting_place(hardware: Machines) -> RendezvousParameters:
    """Where the machines of a run find each other. Raises SettingsError where nobody says which of several this is."""
    run_id = f"started_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    if hardware.nodes == 1:
        return RendezvousParameters("c10d", "localhost:0", run_id, 1, 1, local_addr="127.0.0.1")
    if "SLURM_NODEID" not in os.environ:
        raise SettingsError(
            f"trainer.nodes={hardware.nodes}: on several machines start with torchrun or SLURM (docs/many_gpus.md)"
        )
    if os.environ.get("SLURM_STEP_NUM_TASKS") != os.environ.get("SLURM_STEP_NUM_NODES"):
        raise SettingsError("start one task a node (srun --ntasks-per-node=1): it starts a process for each device")
    address = SLURMEnvironment.resolve_root_node_address(os.environ["SLURM_JOB_NODELIST"])
    port = 15_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000  # the same on all nodes of a job
    nodes, rank = hardware.nodes, int(os.environ["SLURM_NODEID"])
    return RendezvousParameters("static", f"{address}:{port}", run_id, nodes, nodes, rank=rank)


def who_was_killed(codes: Mapping[int, int], then: str) -> str | None:
    """Which of the ranks that ended first was killed from outside, and by what, and `then` what to do."""
    for rank, code in codes.items():
        if code < 0 and code != -signal.SIGTERM:  # with which the launcher ends the others
            name = signal.Signals(-code).name
            hint = " (by the system, if its memory ran out)" if -code == signal.SIGKILL else ""
            return f"rank {rank} was killed by {name}{hint}, and the others were ended. {then}"
    return None


def words_of(logs: Path, run_id: str) -> list[dict[str, Any]]:
    """What the ranks of one start left in their error files: rank, time and error."""
    found = [json.loads(path.read_text()) for path in logs.glob(f"{run_id}_*/attempt_*/*/error.json")]
    return [content["message"]["extraInfo"]["word"] for content in found]


def leave_word(rank: int, error: Exception) -> None:
    """Says what ended a rank where the launcher looks for it, in torch's format. On a full disk only the terminal, or
    the rank's log, has it."""
    named = "" if isinstance(error, PreemptedError) else f"{type(error).__name__}: "
    word = {"rank": rank, "time": time.time(), "error": f"{named}{error}"}
    path = Path(os.environ["TORCHELASTIC_ERROR_FILE"])
    extra = {"py_callstack": "", "timestamp": str(int(word["time"])), "word": word}
    try:
        path.write_text(json.dumps({"message": {"message": word["error"], "extraInfo": extra}}))
    except OSError:
        path.unlink(missing_ok=True)
        print(visible(word["error"]), file=sys.stderr)
