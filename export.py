"""Write weights for others: `python export.py runs/THE_RUN` makes a safetensors file with the released keys."""

import argparse
from pathlib import Path

from microdit.commands.messages import console, run_told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder (its newest checkpoint), or one of its checkpoints")
    parser.add_argument("--weights", choices=["ema", "raw"], default="ema", help="ema: the average where there is one")
    parser.add_argument("--output", type=Path, help="by default RUN/ema_step_N.safetensors or raw_...")
    arguments = parser.parse_args()

    from microdit.checkpoints.export import export_weights

    written = export_weights(arguments.run, arguments.weights, arguments.output)
    console.print(f"wrote {written}", highlight=False)


if __name__ == "__main__":
    run_told(main)
