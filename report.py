"""Tables and figures from runs: `python report.py experiments/headline runs/sweep_...`, or from results.csv alone."""

import argparse
from pathlib import Path

from microdit.commands.messages import console, run_told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where tables and figures go: experiments/NAME, or a folder of runs")
    parser.add_argument(
        "runs", type=Path, nargs="*", help="runs or sweeps to make results.csv from; without any, the one there is used"
    )
    arguments = parser.parse_args()

    from microdit.reports.report import report

    report(arguments.folder, arguments.runs, console)


if __name__ == "__main__":
    run_told(main)
