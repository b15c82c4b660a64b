"""Whether a device that settings name can be computed on."""

import torch

from microdit.build import SettingsError


def check_device(device: str) -> None:
    """Raises SettingsError for a device that this machine, or this build of torch, does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # as torch says it: the driver, the build, or the name
        raise SettingsError(
            f"device={device} cannot be used here ({str(error).splitlines()[0]}); device=cpu always can"
        ) from error
