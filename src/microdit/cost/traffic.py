"""What travels between devices in a step of training, from counting."""

from typing import NamedTuple

from microdit.cost.memory import BFLOAT16, FLOAT32


class Traffic(NamedTuple):
    """Bytes that arrive in a step: at a device from all others, and at a machine from other machines."""

    device: int
    machine: int


def step_traffic(
    parameters: int,
    *,
    machines: int,
    devices: int,
    parts: int,
    bf16: bool,
    micro_batches: int,
    reshard_after_forward: bool = True,
    compressed: bool = False,
) -> Traffic:
    """Of a network of so many `parameters` on `machines` of `devices` each, that is divided into `parts` (1: DDP).

    As rings exchange them: all of n devices get n parts, or give theirs to a sum, by (n - 1)/n of the whole that
    arrives at each, and a machine gets what arrives at one of its devices. DDP adds gradients up over a step's
    micro-batches before they travel (in bfloat16 where they are `compressed`). FSDP gathers weights for each
    micro-batch, a second time for the backward pass where they were given back, and sums gradients in float32. With
    fewer parts than devices (HSDP) weights stay inside a machine, and the sums of parts travel between machines.
    """
    everyone = machines * devices
    if parts == 1:
        gradients = 2 * parameters * (BFLOAT16 if compressed else FLOAT32)
        return Traffic(share(gradients, everyone), share(gradients, everyone) if machines > 1 else 0)
    weights = (2 if reshard_after_forward else 1) * parameters * (BFLOAT16 if bf16 else FLOAT32)
    inside = micro_batches * share(weights + parameters * FLOAT32, parts)
    if parts == everyone:
        return Traffic(inside, inside if machines > 1 else 0)
    between = micro_batches * share(2 * parameters * FLOAT32, machines)
    return Traffic(inside + between // devices, between)


def share(whole: int, ranks: int) -> int:
    return whole * (ranks - 1) // ranks
