"""What a device can do at best, as MFU needs it: the rate of a large matrix product in the same precision."""

import time

import torch

SIDE = {"cuda": 8192, "cpu": 1536}
SECONDS = 0.2


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several products of two large square matrices. Draws no random numbers."""
    side = SIDE.get(device.type, SIDE["cpu"])
    a = torch.linspace(-1, 1, side * side, device=device).view(side, side).to(dtype)
    b = a.T.contiguous()
    best, began = float("inf"), time.perf_counter()
    torch.mm(a, b)  # the first one loads and chooses the kernel
    while time.perf_counter() - began < SECONDS or best == float("inf"):
        started = finish(device)
        torch.mm(a, b)
        best = min(best, finish(device) - started)
    return 2 * side**3 / best


def finish(device: torch.device) -> float:
    """The time, once the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
