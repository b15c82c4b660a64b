"""Evaluation by several processes: each does its share, and all have the results of all, in the order in which one
process would have them."""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch

Unit = TypeVar("Unit")
Result = TypeVar("Result")
LONGEST_SHARE = timedelta(days=30)  # a rank that dies is noticed at once, by its connection


class OtherRankError(RuntimeError):
    """Another of the processes that evaluate together failed; the message says which, and why."""


@dataclass(frozen=True)
class Ranks:
    """The processes that evaluate together: this one is `rank` of `count`. The first leads: it alone writes and tells.

    Units of work are whole batches, dealt out in turn, so that no batch is composed otherwise than for one process, and
    numbers are the same to the last bit.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def has(self, number: int) -> bool:
        """Whether unit `number` is of this rank's share."""
        return number % self.count == self.rank

    def each(self, units: Iterable[Unit], work: Callable[[Unit], Result]) -> list[Result]:
        """`work` of every unit, each done by one rank; all results on every rank, in the order of the units, which
        every rank goes through. What a rank raises ends it, and with it the others."""
        return self.in_order({number: work(unit) for number, unit in enumerate(units) if self.has(number)})

    def in_order(self, own: Mapping[int, Result]) -> list[Result]:
        """The results of all ranks by their numbers, of which each rank has `own`."""
        found: dict[int, Result] = {}
        for one in self.gathered(own):
            found |= one
        return [found[number] for number in sorted(found)]

    def gathered(self, own: Result) -> list[Result]:
        """What each rank has, in the order of ranks, on every rank."""
        if self.count == 1:
            return [own]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, own, group=self.group)
        return found

    def of_first(self, make: Callable[[], Result]) -> Result:
        """What the first rank makes, on every rank. Raises what it raised, on the others OtherRankError."""
        if self.count == 1:
            return make()
        told: list[Any] = [None, None]
        raised = None
        if self.leads:
            try:
                told[0] = make()
            except Exception as error:  # whatever it is: the others would wait for it
                raised, told[1] = error, f"{type(error).__name__}: {error}"
        torch.distributed.broadcast_object_list(told, group_src=0, group=self.group)
        if raised is not None:
            raise raised
        if told[1] is not None:
            raise OtherRankError(f"rank 0: {told[1]}")
        return told[0]

    def held_by_first(self, lock: Callable[[], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
        """A lock that the first rank holds for all of them; the others are held up where they next need it."""
        return lock() if self.leads else nullcontext()


ALONE = Ranks()


def all_ranks() -> Ranks:
    """The ranks of this process group, which all have to ask together; one alone where there is none.

    They meet in a group of their own, on CPUs: what one waits for may take hours, and is no tensor.
    """
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return ALONE
    group = torch.distributed.new_group(backend="gloo", timeout=LONGEST_SHARE)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size(), group)


def join_ranks() -> Ranks:
    """The ranks that a launcher (our own, torchrun) made this process one of."""
    if "RANK" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return ALONE
    torch.distributed.init_process_group("gloo", timeout=LONGEST_SHARE)
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


def batches_of(count: int, size: int) -> list[range]:
    """The numbers of `count` things, `size` at a time."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]
