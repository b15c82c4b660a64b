"""Curves and pictures in TensorBoard."""

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

log = logging.getLogger(__name__)


class PatientTensorBoard(TensorBoardLogger):
    """Lightning's logger, but a disk without room costs a few points of the curves and not the run: it says so once."""

    told = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.attempt(super().log_metrics, metrics, step)

    def save(self) -> None:
        self.attempt(super().save)

    def finalize(self, status: str) -> None:
        self.attempt(super().finalize, status)

    def attempt(self, write: Callable[..., None], *arguments: Any) -> None:
        try:
            write(*arguments)
        except (OSError, ValueError) as error:
            cause = error.__cause__ or error  # Lightning raises a ValueError from whatever the writer raised
            if not isinstance(cause, OSError):
                raise
            if not self.told:
                log.warning("%s cannot be written (%s); training goes on, metrics.csv has all", self.log_dir, cause)
            self.told = True
            self._experiment = None  # its writing thread has ended; the next point starts another file
