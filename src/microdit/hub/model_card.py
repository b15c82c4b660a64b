"""A model card from what a run left: data, recipe, metrics with their commands, cost and an estimate of its carbon."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from microdit.pipeline import LatentDiffusion
from microdit.progress import on_one_line
from microdit.runs.differences import settings_of
from microdit.runs.folder import HISTORY_FILE, RESULT_FILE, read_config
from microdit.runs.record import Record, read_history, read_record

# Watts of a device at work, by its name: the makers' figures of their cards. A process on a CPU has a server's share.
WATTS = {
    "H200": 700,
    "H100": 700,
    "A100": 400,
    "L40S": 350,
    "V100": 300,
    "4090": 450,
    "3090": 350,
    "A10": 150,
    "T4": 70,
}
CPU_WATTS, OTHER_WATTS = 100, 400
# Grams of CO2 for each kWh, the world's average of 2023 (Ember), and what a data centre takes for each kWh of its
# machines (Uptime Institute's survey of 2023).
GRAMS_PER_KWH, OVERHEAD = 480, 1.58
NO_METRICS = ("train/", "choice/", "data/")  # what a record's other numbers begin with
A_PLACE = re.compile(r"""(^|[\s"'\[=:,])(/|~|\.\.?/|local-dir:)""")
LONGEST = 120  # characters of a value


def model_card(run: Path | None, pipeline: LatentDiffusion, name: str, form: str, licence: str, picture: bool) -> str:
    """The README.md of a repository: its metadata as YAML, then Markdown in which words of the run's files are shown as
    they are. `run` is None for a network that no run's folder tells of. DamagedFileError for files that are none."""
    record = read_record(run / RESULT_FILE) if run is not None else {}
    metadata: dict[str, Any] = {
        "license": licence,
        "library_name": "diffusers" if form == "diffusers" else "microdit",
        "pipeline_tag": "text-to-image",
        "tags": ["microdit", "diffusion", "text-to-image"],
    }
    grams = carbon_grams(record)
    if grams is not None:
        source = "estimated from device hours by microdit"
        hardware = on_one_line(f"{record.get('devices', 1)} x {record.get('device')}")
        metadata["co2_eq_emissions"] = {"emissions": grams, "source": source, "training_type": "pre-training"}
        metadata["co2_eq_emissions"]["hardware_used"] = hardware
    parts = [
        f"# {name.partition('/')[2]}",
        opening(record, pipeline),
        "![pictures of the run's own prompts, at its end](samples.png)" if picture else "",
        usage(name, form),
        data(record),
        recipe(run, record),
        metrics(run, record),
        cost(record, grams),
        f"## License\n{code(licence)}, of the weights. The code, microdit, is Apache-2.0; encoders from elsewhere have "
        "licenses of their own.",
    ]
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    return f"---\n{head}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def code(text: Any) -> str:
    """A value as code in Markdown, on one line, whatever is in it."""
    told = re.sub(r"[`|]", "'", str(on_one_line(str(text)))).strip()
    return f"`{told[:LONGEST] or '-'}`"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def opening(record: Record, pipeline: LatentDiffusion) -> str:
    count = sum(parameter.numel() for parameter in pipeline.dit.parameters())
    side = pipeline.dit.input_size * pipeline.autoencoder.downscale
    told = f"A text-to-image transformer of {count:,} parameters for pictures of {side} px, trained with microdit"
    if record.get("steps") is None:
        return f"{told}."
    state = (
        "" if record.get("status") == "finished" else f" Its training is {code(record.get('status'))}, not finished."
    )
    return f"{told}: {number(record['steps'])} steps, {number(record.get('images'))} pictures seen.{state}"


def usage(name: str, form: str) -> str:
    if form == "diffusers":
        lines = ["from diffusers import DiffusionPipeline", ""]
        lines += [f'pipeline = DiffusionPipeline.from_pretrained("{name}", trust_remote_code=True)']
        lines += ['pipeline("a red circle").images[0].save("circle.png")']
        note = "The code that it runs is in this repository: read it before you trust it."
    else:
        lines = ["from microdit import LatentDiffusion", "", f'pipeline = LatentDiffusion.load("{name}")']
        lines += ['images = pipeline.generate(["a red circle"], seed=2024)  # [1, 3, H, W] in [0, 1]']
        note = f"Or `generate.py checkpoint={name}`; `train.py init_from={name}` trains on from it."
    return "## Use\n```python\n" + "\n".join(lines) + f"\n```\n{note}"


def data(record: Record) -> str:
    seen = {key.removeprefix("data/images/"): n for key, n in record.items() if key.startswith("data/images/")}
    if not seen and "choice/data_mix" not in record:
        return ""
    rows = [(code(source), number(count)) for source, count in seen.items()]
    told = f"## Data\n`data_mix` is {code(record.get('choice/data_mix'))}."
    return f"{told}\n\n{table(['source', 'pictures seen'], rows)}" if rows else told


def recipe(run: Path | None, record: Record) -> str:
    """The choices, and every setting that decides what is trained, without places on one's machine."""
    if run is None:
        return ""
    chosen = {key.removeprefix("choice/"): value for key, value in record.items() if key.startswith("choice/")}
    settings = {} if not (config := read_config(run)) else settings_of(config)
    told = [f"{on_one_line(key)}: {on_one_line(without_places(value))[:LONGEST]}" for key, value in settings.items()]
    rows = [(code(group), code(choice)) for group, choice in sorted(chosen.items())]
    parts = ["## Recipe", f"Commit {code(record.get('commit'))}, seed {code(record.get('seed'))}."]
    parts += [table(["group", "choice"], rows)] if rows else []
    if told:
        listed = "\n".join(line.replace("`", "'") for line in told)
        parts.append(f"<details><summary>Every setting</summary>\n\n```\n{listed}\n```\n\n</details>")
    return "\n\n".join(parts)


def without_places(value: Any) -> Any:
    """A value, or where it is a text with a path or an address in it, that it is a place: those are one's own."""
    return "(a place)" if isinstance(value, str) and A_PLACE.search(value) else value


def metrics(run: Path | None, record: Record) -> str:
    """Every number that was measured, with the command that measures it."""
    numbers = {
        key: value
        for key, value in record.items()
        if "/" in key and not key.startswith(NO_METRICS) and isinstance(value, float | int)
    }
    if run is None or not numbers:
        return ""
    later = {}
    for made in read_history(run / HISTORY_FILE):
        later |= dict.fromkeys(made.get("numbers") or (), command_of(made))
    usual = f"evaluate.py checkpoint=THE_RUN metrics={record.get('choice/metrics', 'THE_SAME')}"
    rows = [
        (code(key), f"{value:.6g}", "while training" if key.startswith("validation/") else code(later.get(key, usual)))
        for key, value in sorted(numbers.items())
    ]
    return f"## Metrics\n{table(['what', 'value', 'command'], rows)}"


def command_of(made: Mapping[str, Any]) -> str:
    """The command of a later evaluation, as far as its line in the history tells."""
    told = [f"metrics={made.get('metric')}"]
    told += [f"weights={made['weights']}"] if made.get("weights") not in (None, "ema") else []
    sampling = made.get("sampling")
    told += [f"sampling.{key}={value}" for key, value in sampling.items()] if isinstance(sampling, Mapping) else []
    return " ".join(["evaluate.py checkpoint=THE_RUN", *told])


def cost(record: Record, grams: float | None) -> str:
    if record.get("seconds") is None:
        return ""
    hours = as_number(record["seconds"]) / 3600
    rows = [
        ("device", code(f"{record.get('devices', 1)} x {record.get('device')}")),
        ("hours", f"{hours:.3g}"),
        ("FLOPs", f"{as_number(record.get('total_flops')):.3g}"),
        ("dollars", f"{as_number(record.get('dollars')):.2f}"),
    ]
    told = (
        f"## Cost\nOf this run alone, without those whose weights it began with.\n\n{table(['what', 'how much'], rows)}"
    )
    if grams is None:
        return told
    return (
        f"{told}\n\n## Carbon\nAbout {grams:.3g} g of CO2: an estimate from {hours:.3g} h of "
        f"{number(record.get('devices', 1))} devices at {watts(record):.0f} W, {OVERHEAD} times that in a data centre, "
        f"and {GRAMS_PER_KWH} g a kWh, the world's average of 2023. Neither power nor the grid was measured."
    )


def carbon_grams(record: Mapping[str, Any]) -> float | None:
    """Grams of CO2 of a run's device hours; None where it does not tell them."""
    if not isinstance(record.get("seconds"), int | float):
        return None
    kwh = record["seconds"] / 3600 * as_number(record.get("devices", 1)) * watts(record) / 1000
    return float(f"{kwh * OVERHEAD * GRAMS_PER_KWH:.3g}")


def watts(record: Mapping[str, Any]) -> float:
    """Of one device at work."""
    device = str(record.get("device"))
    if "CPU" in device:
        return CPU_WATTS
    return next((power for name, power in WATTS.items() if name in device), OTHER_WATTS)


def as_number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def number(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else "-"
