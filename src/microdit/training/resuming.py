"""What `resume=` is to be given, for messages that say how to go on."""

from pathlib import Path

STAGES_FILE = "stages.yaml"  # in the folder of a chain of stages


def to_resume(run: Path) -> Path:
    """The folder to go on with: the run's own, or that of the chain of which the run is a stage."""
    return run.parent if (run.parent / STAGES_FILE).is_file() else run
