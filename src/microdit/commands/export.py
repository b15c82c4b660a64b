"""Write a network for others: `export.py runs/THE_RUN` makes a safetensors file with the released keys,
`--format diffusers` a folder that diffusers opens without this package. `--push OWNER/NAME` uploads it, with a card."""

import argparse
import tempfile
from pathlib import Path

from microdit.commands.messages import console, tell_places
from microdit.kinds import SettingsError
from microdit.pipeline import pipeline_settings_of
from microdit.runs.folder import PIPELINE_FILE, places_named, run_of


def export_command() -> None:
    """Writes what the command line asks for, and says where it is."""
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
    parser.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload to this repository of the Hugging Face hub, with a model card from result.json; what is sent is "
        "listed first. The token is that of HF_TOKEN",
    )
    parser.add_argument("--private", action="store_true", help="with --push: a new repository is private")
    parser.add_argument("--license", default="apache-2.0", help="with --push: of the weights, by its name on the hub")
    arguments = parser.parse_args()

    run = run_of(arguments.run)
    if arguments.format == "diffusers" and (run / PIPELINE_FILE).is_file():  # its encoders are part of what is written
        tell_places(places_named(pipeline_settings_of(run), [run]), run / PIPELINE_FILE)
    if arguments.push is not None:
        push_command(arguments)
        return
    if arguments.format == "diffusers":
        from microdit.hub.diffusers_folder import export_diffusers

        written = export_diffusers(arguments.run, arguments.weights, arguments.output)
    else:
        from microdit.checkpoints.export import export_weights

        written = export_weights(arguments.run, arguments.weights, arguments.output)
    console.print(f"wrote {written}", highlight=False)


def push_command(arguments: argparse.Namespace) -> None:
    """Writes what is uploaded into a folder of its own, lists it, uploads it, and says where it is."""
    from microdit.hub.push import check_push, push, write_for_hub

    if arguments.output is not None:
        raise SettingsError("--push writes nothing that stays here: leave --output, or export without --push first")
    token = check_push(arguments.push)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_for_hub(arguments.run, arguments.weights, arguments.format, arguments.push, arguments.license, folder)
        address = push(
            folder, arguments.push, token, arguments.private, lambda line: console.print(line, highlight=False)
        )
    console.print(f"uploaded: {address}", highlight=False)
