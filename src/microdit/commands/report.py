"""Tables and figures from runs: `report.py experiments/headline runs/sweep_...`, or from results.csv alone."""

import argparse
from pathlib import Path

from microdit.commands.messages import console


def report_command() -> None:
    """Writes what the command line asks for, and says where it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where tables and figures go: experiments/NAME, or a folder of runs")
    parser.add_argument(
        "runs", type=Path, nargs="*", help="runs or sweeps to make results.csv from; without any, the one there is used"
    )
    arguments = parser.parse_args()

    from microdit.reports.report import report

    report(arguments.folder, arguments.runs, console)
