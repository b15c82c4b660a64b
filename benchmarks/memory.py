"""How much memory a piece of work takes at its peak, apart from what the rest of the process holds.

On an accelerator torch counts it. On a CPU it is the resident memory that Linux counts, with freed memory given back
before, so that what an earlier candidate left behind is not counted again; elsewhere it is not known.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): the peak of resident memory begins anew


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int | None:
    """Peak memory of `work` beyond what the process holds when it begins; None where that cannot be measured."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    library = ctypes.CDLL(None)
    if not (CLEAR.exists() and hasattr(library, "malloc_trim")):
        work()
        return None
    library.malloc_trim(0)
    CLEAR.write_text(RESET_PEAK)
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """VmRSS, now, or VmHWM, at its peak, in bytes."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e9:.1f}"
