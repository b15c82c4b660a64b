"""How this process and the C library share memory: large tensors on a CPU are freed and asked for again every step."""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = -1


def keep_freed_memory() -> None:
    """From here on freed memory stays with the process, at its peak, instead of going back to the system.

    Otherwise the system hands the same pages out again in the next step, emptied one by one: 4 to 12 % of a training
    step on a CPU (benchmarks/RESULTS.md). Does nothing where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, NEVER)
