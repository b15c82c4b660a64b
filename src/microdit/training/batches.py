"""How a global batch is divided: among devices, then into micro-batches that fit on one."""

from typing import NamedTuple

from microdit.build import SettingsError
from microdit.training.settings import StageSettings, TrainerSettings


class BatchDivision(NamedTuple):
    """`micro_batches` of `device_batch_size` images on each device make one step."""

    device_batch_size: int
    micro_batches: int


def divide_batch(stage: StageSettings, hardware: TrainerSettings) -> BatchDivision:
    """The division of the stage's global batch. Raises SettingsError listing the divisions that are possible."""
    images, devices = stage.global_batch_size, hardware.world_size
    share, remainder = divmod(images, devices)
    if remainder or not share:
        batches = sorted({max(devices, images - images % devices), images - images % devices + devices})
        raise SettingsError(
            f"a global batch of {images} images does not divide among {devices} devices. Possible: "
            f"{listed(divisors(images))} devices (trainer.devices times trainer.nodes), or a global batch of "
            f"{' or '.join(map(str, batches))} (resolution_stage.global_batch_size)"
        )
    device_batch_size = min(hardware.device_batch_size or share, share)
    if share % device_batch_size:
        raise SettingsError(
            f"a device's {share} images of the global batch ({images} on {devices} devices) do not divide into "
            f"micro-batches of {device_batch_size}. Possible: trainer.device_batch_size={listed(divisors(share))}"
        )
    return BatchDivision(device_batch_size, share // device_batch_size)


def divisors(number: int) -> list[int]:
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
