"""Tables and figures from runs: `python report.py experiments/headline runs/sweep_...`, or from results.csv alone."""

from microdit.commands.entry_points import report

if __name__ == "__main__":
    report()
