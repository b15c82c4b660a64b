"""Tables and figures from runs: `python report.py experiments/headline runs/sweep_...`, or from results.csv alone."""

import argparse
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where tables and figures go: experiments/NAME, or a folder of runs")
    parser.add_argument(
        "runs", type=Path, nargs="*", help="runs or sweeps to make results.csv from; without any, the one there is used"
    )
    arguments = parser.parse_args()

    from rich.markup import escape

    from microdit.analysis.report import report
    from microdit.build import SettingsError
    from microdit.cli import console, errors

    try:
        report(arguments.folder, arguments.runs, console)
    except (SettingsError, OSError) as error:
        errors.print(f"[red]error:[/red] {escape(str(error))}")
        sys.exit(1)


if __name__ == "__main__":
    main()
