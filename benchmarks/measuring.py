"""What the benchmarks share: rounds in which all candidates take turns, this machine's GEMM rate, tables and records.

A busy machine is busy for every candidate of a round about alike, so ratios are taken within a round and the median of
the rounds is quoted, with the lowest and highest beside it.
"""

import datetime
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table


class Spread(NamedTuple):
    """The median of some rounds, and their extremes."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def show(self, digits: int = 3, scale: float = 1.0) -> str:
        median, low, high = (f"{value * scale:.{digits}g}" for value in self)
        return f"{median} ({low}-{high})"


def synchronise(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - start


def take_turns(
    candidates: dict[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    product: tuple[Callable[[], Any], int],
    warmups: int = 1,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each candidate in each round, after `warmups` uncounted calls of each, and the FLOP/s of `product`.

    The product runs before and after every candidate, and its rate is the mean of both: a machine that others use
    changes its rate from one candidate to the next.
    """
    multiply, flops = product
    multiply()
    for work in candidates.values():
        for _ in range(warmups):
            work()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        before = seconds_of(multiply, device)
        for name, work in candidates.items():
            seconds[name].append(seconds_of(work, device))
            after = seconds_of(multiply, device)
            rates[name].append(2 * flops / (before + after))
            before = after
    return seconds, rates


def large_product(dtype: torch.dtype, device: torch.device, side: int | None = None) -> tuple[Callable[[], Any], int]:
    """A square matrix product that keeps the device busy, and its FLOPs: what model FLOPs are measured against."""
    side = side or (8192 if device.type == "cuda" else 3072)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    repeats = 10 if device.type == "cuda" else 3

    def work() -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    return work, repeats * 2 * side**3


def multiplies(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether products in this precision are worth measuring: processors without instructions for it emulate them."""
    a = torch.randn(256, 256, device=device)
    b = a.to(dtype)
    seconds_of(lambda: torch.mm(a, a), device), seconds_of(lambda: torch.mm(b, b), device)  # the first call of each
    full, own = (min(seconds_of(lambda x=x: torch.mm(x, x), device) for _ in range(3)) for x in (a, b))
    return own < 4 * full


def machine() -> dict[str, str]:
    """What the numbers were measured on, and with what."""
    processor = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    described = {
        "date": datetime.date.today().isoformat(),
        "processor": f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "microdit": commit(),
        "python": platform.python_version(),
    }
    if torch.cuda.is_available():
        described["accelerator"] = torch.cuda.get_device_name()
    return described


def commit() -> str:
    """The commit that is measured, with -dirty where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude", "*"]
    described = subprocess.run(command, capture_output=True, text=True)
    return f"commit {described.stdout.strip()}" if described.returncode == 0 else "no commit"


def check_writable(json_path: Path | None) -> None:
    """Long measurements must not end at a path that cannot be written."""
    if json_path is not None:
        json_path.touch()


def supported(precisions: Sequence[str], dtypes: dict[str, torch.dtype], device: torch.device) -> list[str]:
    """Those of `precisions` that the device has instructions for; says which others are left out."""
    found = [name for name in precisions if multiplies(dtypes[name], device)]
    for name in precisions:
        if name not in found:
            print(f"{name} is left out: this processor has no instructions for it, and emulates them many times slower")
    if not found:
        raise SystemExit("nothing is left to measure: choose another --precision")
    return found


def publish(title: str, rows: list[dict[str, str]], record: dict[str, Any], json_path: Path | None) -> None:
    """Prints one table, and writes the numbers behind it where a path is given."""
    table = Table(title=title, title_justify="left")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == next(iter(rows[0])) else "right")
    for row in rows:
        table.add_row(*row.values())
    Console(width=160).print(table)
    if json_path is not None:
        content = {"title": title, "machine": machine(), "rows": rows, **record}
        json_path.write_text(json.dumps(content, indent=2) + "\n")
