"""Shards made by a Ray cluster: actors hold the encoders, its CPUs decode, and what failed is done again.

Output shard i depends on input shard i alone and appears whole or not at all, so whoever makes it, and how often it was
begun, does not show. All nodes need this package, the encoders' weights, and the same disk under the same paths.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from microdit.build import TRUST_VARIABLE
from microdit.data.prepare.convert import MakeShards, Work, prepare_shard
from microdit.data.prepare.launchers import EncodersOn, Launcher, WorkerLostError, cores, decoding
from microdit.files import NoRoomError
from microdit.kinds import Images, Limits, SettingsError
from microdit.progress import Report, counted

# Ray's own defaults would send statistics of its use, and listen to other machines where it is started for this one.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
POLL_SECONDS = 1.0


class RayMissingError(ImportError):
    """Ray is not installed."""


class RayCluster(Launcher):
    """The CPUs and GPUs of a Ray cluster.

    `address`: null starts Ray on this machine, for this command alone; "auto" or HOST:PORT is a cluster that runs.
    `workers`: actors that hold the encoders; null: one for each GPU, or where CPUs encode one for `threads` of them.
    `decode_on`: "workers", in threads beside the encoders, or "cluster", on any of its CPUs; null: as suits the device.
    `attempts`: how often a shard is begun before its error ends the command. `dollars_per_worker_hour`: for the cost.
    """

    def __init__(
        self,
        address: str | None = None,
        workers: Images | None = None,
        decode_on: Literal["workers", "cluster"] | None = None,
        attempts: Annotated[int, Limits(1, 100)] = 3,
        dollars_per_worker_hour: Annotated[float, Limits(0, 10_000)] = 0.0,
    ) -> None:
        self.address, self.count, self.decode_on = address, workers, decode_on
        self.attempts, self.dollars_per_worker_hour = attempts, dollars_per_worker_hour

    @contextmanager
    def workers(self, encoders: EncodersOn, device: str | None, threads: int | None) -> Iterator[MakeShards]:
        ray = imported()
        began = not ray.is_initialized()
        if began:
            start(ray, self.address)
        try:
            crew = Crew(ray, self, encoders, device, threads)
            try:
                yield crew.make
            finally:
                crew.dismiss()
        finally:
            if began:
                ray.shutdown()


def imported() -> Any:
    """The library. RayMissingError where it is not installed."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise RayMissingError(
            "launcher=ray needs Ray: pip install 'microdit[ray]', or leave it out to use this machine alone"
        ) from error
    return ray


def start(ray: Any, address: str | None) -> None:
    """Joins a cluster, or starts Ray for this machine alone. SettingsError where that fails."""
    usual: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    trusted = {name: os.environ[name] for name in (TRUST_VARIABLE,) if name in os.environ}
    if trusted:
        usual["runtime_env"] = {"env_vars": trusted}
    if address is None:
        usual |= {"num_cpus": cores(), "include_dashboard": False}
    try:
        try:
            ray.init(address=address or "local", **usual)
        except Exception as error:  # Ray raises plain exceptions of every kind
            if address is not None or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            ray.init(address=address or "local", **usual)  # its files are in memory by now
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        cure = (
            "Ray waits 15 s for its own processes: on a busy machine try again, or use launcher=local"
            if address is None
            else f"Start one with `ray start --head`, then launcher.address=auto or HOST:PORT (it was {address})"
        )
        raise SettingsError(
            f"launcher.address: Ray cannot be reached ({type(error).__name__}: {said}). {cure}"
        ) from error


class Crew:
    """The actors of a cluster, and who has which shard."""

    def __init__(
        self, ray: Any, settings: RayCluster, encoders: EncodersOn, device: str | None, threads: int | None
    ) -> None:
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 1))
        if device is not None and device.startswith("cuda:"):
            raise SettingsError(f"device={device} is a GPU of one machine; for all of a cluster's: device=cuda")
        self.device = device or ("cuda" if gpus else "cpu")
        on_gpu = self.device != "cpu"
        if on_gpu and not gpus:
            raise SettingsError(f"device={self.device}: the cluster has {cpus} CPUs and no GPU; set device=cpu")
        apart = settings.decode_on == "cluster" or (settings.decode_on is None and on_gpu)
        self.count = settings.count or (gpus if on_gpu else max(1, cpus // (threads or 1)))
        self.threads = threads or max(1, cpus // self.count)
        # Who decodes elsewhere counts no CPU, so that one is always left for that.
        needs = {"num_gpus": 1 if on_gpu else 0, "num_cpus": 0 if apart else self.threads}
        self.ray, self.settings = ray, settings
        self.kind = ray.remote(**needs)(Worker)
        self.arguments = encoders, self.device, self.threads, apart, os.getcwd()
        self.coming: dict[Any, Any] = {}  # workers, by what says that they are ready
        self.idle: deque[Any] = deque()
        self.busy: dict[Any, tuple[Any, int]] = {}  # with their shard, by what says that it is made
        self.tried: Counter[int | None] = Counter()  # what failed, and how often; None: to get ready
        self.spent = 0.0  # seconds of all workers together
        for _ in range(self.count):
            self.hire()

    def hire(self) -> None:
        """Asks for a worker, who comes when the cluster has room."""
        worker = self.kind.remote(*self.arguments)
        self.coming[worker.load.remote()] = worker

    def make(self, work: Work, numbers: Sequence[int], progress: Report) -> int:
        """As `MakeShards`; WorkerLostError where a shard ended its worker as often as it was tried."""
        shared, waiting = self.ray.put(decoding(work, self.threads)), deque(numbers)
        began = before = time.monotonic()
        self.tried.clear()
        images = done = 0
        while waiting or self.busy:
            while waiting and self.idle:
                worker, number = self.idle.popleft(), waiting.popleft()
                self.busy[worker.make.remote(shared, number)] = worker, number
            ready, _ = self.ray.wait([*self.busy, *self.coming], timeout=POLL_SECONDS)
            now = time.monotonic()
            self.spent, before = self.spent + (now - before) * (len(self.busy) + len(self.idle)), now
            for told in ready:
                worker, number = self.busy.pop(told) if told in self.busy else (self.coming.pop(told), None)
                error, gone, read = self.heard(told)
                fit = not gone and (error is None or number is not None)
                if fit:
                    self.idle.append(worker)
                else:
                    self.ray.kill(worker)
                if error is not None:
                    self.refuse(error, gone, number)
                    waiting.extend([] if number is None else [number])
                if not fit:
                    self.hire()
                if error is not None:
                    continue
                if number is not None:
                    done, images = done + 1, images + read
            progress(done, len(numbers), self.told(done, len(numbers), images, now - began))
        return images

    def heard(self, told: Any) -> tuple[Exception | None, bool, int]:
        """What a worker answered: an error, whether it is gone, and how many pictures it read."""
        try:
            return None, False, self.ray.get(told) or 0
        except self.ray.exceptions.RayTaskError as error:
            return (error.cause if isinstance(error.cause, Exception) else error), False, 0
        except self.ray.exceptions.RayError as error:
            return error, True, 0

    def refuse(self, error: Exception, gone: bool, number: int | None) -> None:
        """Counts a failure; raises one that would come again, or has come as often as is allowed."""
        self.tried[number] += 1
        last = self.tried[number] >= self.settings.attempts
        if gone and last:
            what = "while it read the encoders' weights" if number is None else f"while it made shard {number:05d}"
            times, said = counted(self.tried[number], "time"), " ".join(str(error).split())[:300]
            raise WorkerLostError(
                f"a worker ended {what}, {times} ({type(error).__name__}: {said}). Mostly memory "
                "ran out: try fewer workers (launcher.workers) or a smaller batch_size; what is complete is kept"
            ) from error
        if not gone and (last or isinstance(error, ValueError | NoRoomError | ImportError)):
            raise error

    def told(self, done: int, total: int, images: int, seconds: float) -> str:
        """How far the whole is, how fast, and what it costs."""
        here, failed = self.count - len(self.coming), self.tried.total()
        text = f"{images} images, {images / max(seconds, 1e-9):.0f} images/s, {here} of {counted(self.count, 'worker')}"
        text += f", {failed} failed and begun again" if failed else ""
        if price := self.settings.dollars_per_worker_hour:
            dollars = self.spent / 3600 * price
            text += f", ${dollars:,.2f}" + (f" of about ${dollars / done * total:,.2f}" if done else "")
        return text

    def dismiss(self) -> None:
        """Ends the workers, also those that are at work: what they have not finished was never there."""
        for worker in (*self.idle, *self.coming.values(), *(worker for worker, _ in self.busy.values())):
            self.ray.kill(worker)


class Worker:
    """One process of a cluster that holds the encoders."""

    def __init__(self, encoders: EncodersOn, device: str, threads: int, apart: bool, folder: str) -> None:
        self.encoders_on, self.device, self.folder = encoders, device, folder
        self.pool: Executor = ClusterPool() if apart else ThreadPoolExecutor(threads, "decode")

    def load(self) -> None:
        """Reads the weights. SettingsError where this node does not see the disk."""
        try:
            os.chdir(self.folder)  # paths are told from there
        except OSError as error:
            raise SettingsError(
                f"a node of the cluster ({os.uname().nodename}) has no {self.folder}: all nodes need the same disk "
                "under the same path, that of the folder where the command is typed"
            ) from error
        self.encoders = self.encoders_on(self.device)

    def make(self, work: Work, number: int) -> int:
        """Makes an output shard; returns how many pictures were read."""
        if not work.folder.is_dir():
            raise SettingsError(
                f"a node of the cluster ({os.uname().nodename}) does not see {work.folder}: put paths.data_root on a "
                "disk that all nodes have under the same path"
            )
        return prepare_shard(work, number, self.encoders, self.pool)


class ClusterPool(Executor):
    """Calls functions on any CPU of the cluster; a call whose process ended is made again."""

    def __init__(self) -> None:
        import ray

        self.called = ray.remote(num_cpus=1)(call)

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future:
        """The result to come, as every executor has it."""
        return self.called.remote(fn, *arguments, **named).future()


def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a function returns."""
    return function(*arguments, **named)
