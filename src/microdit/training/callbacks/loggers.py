"""What is logged of a run: metrics.csv, which every run has, and TensorBoard that outlives a full disk."""

import configparser
import csv
import logging
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from microdit.files import CHECKSUM, appending, replacing, size_of_file
from microdit.kinds import SettingsError
from microdit.runs.folder import WANDB_FOLDERS
from microdit.runs.metrics import is_whole, read_rows, with_checksum

log = logging.getLogger(__name__)
# What `wandb init` and its like write beside one's work. The others say where keys and numbers go, or what is started.
OF_A_WORKSPACE = (
    *("entity", "project", "organization", "mode", "disabled", "anonymous", "console", "quiet", "silent", "username"),
    *("run_name", "run_group", "run_job_type", "run_notes", "run_tags", "save_code", "disable_code", "disable_git"),
)


def refuse_settings_beside(folder: Path) -> None:
    """Raises SettingsError where a settings file of Weights & Biases in `folder`, which it reads unasked, has more than
    OF_A_WORKSPACE that the environment does not say as well: it may have come with a run."""
    for path in (folder / name / "settings" for name in WANDB_FOLDERS):
        if not path.exists():
            continue
        size_of_file(path)
        parser = configparser.ConfigParser()
        try:
            parser.read(path, encoding="utf-8")
            found = dict(parser.items("default")) if parser.has_section("default") else {}
        except (configparser.Error, UnicodeDecodeError) as error:
            raise SettingsError(f"{path} cannot be read ({error}); mend it, or remove it") from error
        for name, value in found.items():
            if name not in OF_A_WORKSPACE and os.environ.get(variable := f"WANDB_{name.upper()}") != value:
                raise SettingsError(
                    f"{path} says {name}, and where Weights & Biases sends things and your key is for you to say: if "
                    f"it is meant, export {variable} with the same value; else remove that line"
                )


class MetricsFile(Logger):
    """Appends rows to a CSV file. A new column rewrites the file; rows of steps that a resume repeats are dropped.

    Rows that cannot be written (a full disk) are reported once, and written when there is room again.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.columns = ["step"]
        self.rows: list[dict[str, Any]] = []
        self.incomplete = False
        if path.exists():
            self.rows, self.incomplete = read_rows(path, numbers_alone=True), not is_whole(path)
            self.columns = list(self.rows[-1]) if self.rows else self.columns

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration has a file of its own, config.yaml."""

    def newest(self) -> dict[str, float]:
        """The last value logged in each column that has one, but for the step."""
        return {
            name: float(value)
            for row in self.rows
            for name, value in row.items()
            if name != "step" and value not in (None, "")
        }

    def steps_with(self, name: str) -> set[int]:
        """After how many steps a value of this name was logged, or of any below it, such as "look/"."""
        below = name if name.endswith("/") else None
        return {
            int(row["step"]) + 1
            for row in self.rows
            for column, value in row.items()
            if value not in (None, "") and (column == name or (below and column.startswith(below)))
        }

    @rank_zero_only
    def forget_after(self, step: int) -> None:
        """Drops rows past `step`, which training is about to make again."""
        kept = [row for row in self.rows if int(row["step"]) <= step]
        if kept != self.rows:
            self.rows = kept
            self.rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        metrics = {name: value for name, value in metrics.items() if name != "epoch"}
        if step is None or not metrics:
            return
        row: dict[str, Any] = {"step": step, **metrics}
        merged = bool(self.rows) and int(self.rows[-1]["step"]) == step
        if merged:
            self.rows[-1] |= row
        else:
            self.rows.append(row)
        new_columns = [name for name in row if name not in self.columns]
        self.columns += new_columns
        try:
            if merged or new_columns or self.incomplete or not self.path.exists():
                self.rewrite()
            else:
                with appending(self.path, newline="") as file:
                    csv.DictWriter(file, [*self.columns, CHECKSUM]).writerow(with_checksum(row))
            self.incomplete = False
        except OSError as error:
            if not self.incomplete:
                log.warning("%s cannot be written (%s); training goes on, rows are kept for later", self.path, error)
            self.incomplete = True

    def rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path, newline="") as file:
            writer = csv.DictWriter(file, [*self.columns, CHECKSUM])
            writer.writeheader()
            writer.writerows(map(with_checksum, self.rows))


class PatientTensorBoard(TensorBoardLogger):
    """Lightning's logger, but a disk without room costs a few points of the curves and not the run: it says so once."""

    told = False

    @property
    def log_dir(self) -> str:
        """The folder as Lightning names it, but nothing in its name stands for something else, such as $HOME: names of
        runs and stages may come from elsewhere."""
        version = self.version if isinstance(self.version, str) else f"version_{self.version}"
        return os.path.join(self.root_dir, version, *filter(None, [self.sub_dir]))

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
