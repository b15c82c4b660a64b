"""The micro-batch that fits: how many images a device can compute at once, by the count of what training holds."""

import os
from dataclasses import replace

import torch

from microdit.cost.memory import DeviceMemory, training_memory
from microdit.distributed.hardware import TrainerSettings, divisors
from microdit.kinds import SettingsError
from microdit.pipeline import LatentDiffusion
from microdit.representation.alignment import make_alignment, with_alignment
from microdit.training.settings import TrainingSettings

GIBIBYTE = 2**30
USABLE = 0.9  # of a device's memory: the rest is for libraries, and for what lies unused between tensors


def fitted(settings: TrainingSettings, pipeline: LatentDiffusion, memory_gib: float | None) -> TrainerSettings:
    """The trainer's settings with the micro-batch that a device of this memory holds: the largest where
    `device_batch_size` is null, and the one that was asked for where it fits. None: memory is not counted.

    Raises SettingsError where it does not fit, with the largest that does, or where nothing does.
    """
    hardware = settings.trainer
    if memory_gib is None:
        return hardware
    if hardware.activation_checkpointing:
        if hardware.device_batch_size is None:
            raise SettingsError(
                "what activation_checkpointing saves is not counted: say how many images a device computes at once, "
                "trainer.device_batch_size=..."
            )
        return hardware
    share = settings.resolution_stage.global_batch_size // hardware.world_size
    most = most_images(settings, pipeline, memory_gib)
    possible = [images for images in divisors(share) if images <= most]
    told = f"{memory_gib:.3g} GiB of each device"
    if not possible:
        raise SettingsError(
            f"not even one image fits the {told} beside network, gradients and optimizer: take more devices with "
            "trainer.strategy=fsdp, or trainer.activation_checkpointing=true"
        )
    asked = hardware.device_batch_size
    if asked is not None and min(asked, share) > most:
        raise SettingsError(
            f"trainer.device_batch_size={asked} does not fit the {told}: the most is {possible[-1]} (python plan.py "
            "shows what takes the memory), or trainer.activation_checkpointing=true"
        )
    return replace(hardware, device_batch_size=asked or possible[-1])


def most_images(settings: TrainingSettings, pipeline: LatentDiffusion, memory_gib: float) -> int:
    """How many images at once fit, 0 where none does: what a device holds grows in a line with them.

    All that a device has of a step fit more easily than any part of them, whose gradients have to be added up.
    """
    share = settings.resolution_stage.global_batch_size // settings.trainer.world_size
    usable = USABLE * memory_gib * GIBIBYTE
    if memory_held(settings, pipeline, share).total <= usable:
        return share
    one, two = (memory_held(settings, pipeline, images, micro_batches=2).total for images in (1, 2))
    return 0 if usable < one else 1 + int((usable - one) // max(1, two - one))


def memory_held(
    settings: TrainingSettings, pipeline: LatentDiffusion, images: int, micro_batches: int = 1
) -> DeviceMemory:
    """What a device holds that computes so many images at once, at the mask ratio of the run that takes most."""
    hardware = settings.trainer
    ratio = min(settings.mask_ratio.ratio(0.0), settings.mask_ratio.ratio(1.0))
    of_network = training_memory(
        pipeline.dit,
        parts=hardware.parts,
        bf16=hardware.halved,
        ema=settings.resolution_stage.ema_decay is not None,
        compiled=hardware.accelerator == "gpu" and hardware.compiles,
        images=images,
        micro_batches=micro_batches,
        mask_ratio=ratio,
        caption_length=pipeline.text_encoder.length,
        reshard_after_forward=hardware.reshard_after_forward,
    )
    return with_alignment(
        of_network,
        make_alignment(settings.representation, pipeline.dit),
        pipeline.dit,
        parts=hardware.parts,
        images=images,
        mask_ratio=ratio,
        caption_length=pipeline.text_encoder.length,
    )


def memory_of_this_device(hardware: TrainerSettings) -> float | None:
    """GiB of the GPU that this process computes on; None for a CPU, whose memory others use too."""
    if hardware.accelerator != "gpu" or not torch.cuda.is_available():
        return None
    device = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.cuda.get_device_properties(device).total_memory / GIBIBYTE
