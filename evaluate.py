"""Measure a trained model: `python evaluate.py checkpoint=runs/THE_RUN`. The numbers join the run's result.json."""

from microdit.commands.entry_points import evaluate

if __name__ == "__main__":
    evaluate()
