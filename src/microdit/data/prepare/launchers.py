"""Who makes the shards: the processors of this machine, or (`ray_cluster.py`) those of many."""

import multiprocessing
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection, wait

import torch

from microdit.data.prepare.convert import MakeShards, Work, make_here, prepare_shard
from microdit.data.prepare.encoding import Encoders
from microdit.progress import Report

EncodersOn = Callable[[str], Encoders]  # builds them on a device, with their weights, in whatever process


class WorkerLostError(RuntimeError):
    """A process that made shards ended early; the message says which, and what to do."""


class Launcher(ABC):
    """Where the work of a preparation is done. Whoever does it, the shards have the same bytes on processors of one
    kind."""

    @abstractmethod
    def workers(
        self, encoders: EncodersOn, device: str | None, threads: int | None
    ) -> AbstractContextManager[MakeShards]:
        """Gives what makes the shards, for as long as the block runs, and ends what it began for that.

        `device`: where the encoders compute; "cuda" is all GPUs that there are, and None those, or where there are none
        the CPUs. `threads`: that decode, of each worker; None: as many as there are cores for it.
        """


class ThisMachine(Launcher):
    """All cores of this machine, and all its GPUs, with a process for each where there are several."""

    @contextmanager
    def workers(self, encoders: EncodersOn, device: str | None, threads: int | None) -> Iterator[MakeShards]:
        devices = devices_of(device)
        threads = threads or max(1, cores() // len(devices))
        if len(devices) == 1:
            loaded = encoders(devices[0])  # what is missing comes out before any work
            yield lambda work, numbers, progress: make_here(loaded, decoding(work, threads), numbers, progress)
        else:
            yield lambda work, numbers, progress: make_on(devices, encoders, decoding(work, threads), numbers, progress)


def decoding(work: Work, threads: int) -> Work:
    """The same work, with pictures decoded by so many threads."""
    return work._replace(recipe=replace(work.recipe, decode_threads=threads))


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def devices_of(device: str | None) -> list[str]:
    """The devices that "cuda" (all GPUs of this machine), None (those, or else the CPU) or any other name means."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())] if device in (None, "cuda") else []
    return gpus or [device or "cpu"]


def make_on(devices: Sequence[str], encoders: EncodersOn, work: Work, numbers: Sequence[int], progress: Report) -> int:
    """Makes output shards in a process for each device; returns how many pictures were read."""
    context, started, done, images = multiprocessing.get_context("spawn"), time.monotonic(), 0, 0
    workers = {}
    for place, device in enumerate(devices):
        # Each has its own list and ends with it: nothing waits for a parent that may have been killed.
        ours, theirs = context.Pipe(duplex=False)
        mine = numbers[place :: len(devices)]
        process = context.Process(target=make_some, args=(device, encoders, work, mine, theirs), daemon=True)
        process.start()
        theirs.close()
        workers[ours] = process, device, len(mine)
    try:
        while workers:
            seconds = max(time.monotonic() - started, 1e-9)
            progress(done, len(numbers), f"{images} images, {images / seconds:.0f} images/s on {len(devices)} devices")
            for pipe in wait([*workers], timeout=1.0):
                process, device, left = workers[pipe]  # type: ignore[index]
                try:
                    told = pipe.recv()  # type: ignore[union-attr]
                except EOFError:
                    process.join()
                    del workers[pipe]  # type: ignore[arg-type]
                    if left:
                        raise WorkerLostError(
                            f"the process that prepared on {device} ended early (exit code {process.exitcode}; -9: it "
                            "was killed, mostly because memory ran out). Run the same command again, what is complete "
                            "is kept"
                        ) from None
                    continue
                if isinstance(told, Exception):
                    raise told
                done, images = done + 1, images + told
                workers[pipe] = process, device, left - 1  # type: ignore[index]
    finally:
        for process, _, _ in workers.values():
            process.terminate()
            process.join()
    return images


def make_some(device: str, encoders: EncodersOn, work: Work, numbers: Sequence[int], pipe: Connection) -> None:
    """Makes some output shards, and tells of each how many pictures were read, or why it could not be made."""
    try:
        loaded = encoders(device)
        with ThreadPoolExecutor(work.recipe.decode_threads, "decode") as pool:
            for number in numbers:
                pipe.send(prepare_shard(work, number, loaded, pool))
    except Exception as error:  # whatever it is, it is raised where the command was typed
        pipe.send(error)
