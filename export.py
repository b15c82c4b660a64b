"""Write a network for others: `python export.py runs/THE_RUN` makes a safetensors file with the released keys,
`--format diffusers` a folder that diffusers opens without this package."""

import argparse
from pathlib import Path

from microdit.commands.messages import console, run_told, tell_places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder (its newest checkpoint), or one of its checkpoints")
    parser.add_argument("--weights", choices=["ema", "raw"], default="ema", help="ema: the average where there is one")
    parser.add_argument(
        "--format",
        choices=["safetensors", "released", "diffusers"],
        default="safetensors",
        help="safetensors and released: one file with the released keys; diffusers: a folder with code, encoders too",
    )
    told = "by default RUN/ema_step_N.safetensors or raw_...; of diffusers the folder RUN/diffusers_ema_step_N"
    parser.add_argument("--output", type=Path, help=told)
    arguments = parser.parse_args()

    if arguments.format == "diffusers":
        from microdit.hub.diffusers_folder import export_diffusers
        from microdit.pipeline import pipeline_settings_of
        from microdit.runs.folder import PIPELINE_FILE, places_named, run_of

        run = run_of(arguments.run)
        if (run / PIPELINE_FILE).is_file():  # the encoders are read, and are part of what is written
            tell_places(places_named(pipeline_settings_of(run), [run]), run / PIPELINE_FILE)
        written = export_diffusers(arguments.run, arguments.weights, arguments.output)
    else:
        from microdit.checkpoints.export import export_weights

        written = export_weights(arguments.run, arguments.weights, arguments.output)
    console.print(f"wrote {written}", highlight=False)


if __name__ == "__main__":
    run_told(main)
