"""What `plan.py` does: what training will cost, before anything runs. FLOPs are counted on the real network, days and
dollars follow from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from microdit.checkpoints.from_hub import is_on_hub
from microdit.checkpoints.reading import CheckpointError
from microdit.checkpoints.starting import initial_checkpoint
from microdit.commands.compose import as_texts, choices, name_of_stages, trusted, with_choices
from microdit.commands.messages import console
from microdit.cost.budget import step_costs, total_cost
from microdit.cost.memory import DeviceMemory
from microdit.cost.traffic import step_traffic
from microdit.distributed.hardware import divide_batch
from microdit.kinds import Limits, Positive, SettingsError
from microdit.pipeline import build_pipeline
from microdit.representation.alignment import alignment_costs, make_alignment
from microdit.training.fitting import fitted, memory_held
from microdit.training.run import network_settings
from microdit.training.settings import Configuration, TrainingSettings, bind, training_settings

# Tables that fit on 80 columns: what a terminal has, and what is taken for it where there is none.
ONE_RUN = [{}]  # the stages of a scale for which conf/plan.yaml has none
PADDING = (0, 1, 0, 0)
IN_A_COLUMN = {
    "parameters": "weights",
    "gradients": "gradi-\nents",
    "optimizer": "opti-\nmizer",
    "moving_average": "EMA",
    "activations": "acti-\nvations",
}


@dataclass(frozen=True)
class PlannedHardware:
    """Devices that reach `mfu`, a share in (0, 1], of `peak_tflops` each, what an hour of one costs, and elsewhere, and
    its memory."""

    devices: Annotated[int, Limits(1, 10**6)]
    peak_tflops: Positive
    mfu: Annotated[float, Limits(0.0001, 1)]
    dollars_per_device_hour: float
    device_memory_gib: float | None = None
    dollars_elsewhere: float | None = None

    def hours(self, flops: float) -> float:
        """How long these FLOPs take."""
        return flops / (self.devices * self.peak_tflops * 1e12 * self.mfu) / 3600

    def dollars(self, flops: float) -> float:
        return self.hours(flops) * self.devices * self.dollars_per_device_hour


@dataclass(frozen=True)
class PlannedStage:
    """One stage of training: its steps, and FLOPs of an image (the mean, where the mask ratio changes) and in all."""

    name: str
    parameters: int
    steps: int
    images: int
    flops_per_image: int
    flops: int


def planned_stage(name: str, settings: TrainingSettings) -> PlannedStage:
    """What a run of these settings costs. The network is built on the meta device, so any size can be planned."""
    pipeline = build_pipeline(network_settings(settings), device="meta")
    batch, steps = settings.resolution_stage.global_batch_size, settings.trainer.max_steps
    alignment = make_alignment(settings.representation, pipeline.dit)
    beside = alignment_costs(alignment, pipeline.dit, settings.mask_ratio, pipeline.text_encoder.length)
    costs = step_costs(pipeline, settings.mask_ratio, batch, beside)
    steps = costs.steps(steps, settings.trainer.max_flops)
    cost = total_cost(costs, steps, pipeline)
    return PlannedStage(name, cost["parameters"], steps, steps * batch, cost["flops_per_image"], cost["total_flops"])


def plan_table(stages: Sequence[PlannedStage], hardware: PlannedHardware) -> Table:
    """One row a stage, and their sum."""
    used = f"{hardware.devices} devices of {hardware.peak_tflops:g} TFLOP/s, used at {hardware.mfu:.1%}"
    title = f"{stages[0].parameters / 1e6:,.4g} M parameters, {used}"
    table = Table(title=title, title_justify="left", padding=PADDING)
    table.add_column("stage", min_width=longest_word(stage.name for stage in stages))
    for column in ("steps", "M images", "GFLOP an\nimage", "FLOP", "days", "dollars"):
        table.add_column(column, justify="right")
    for stage in stages:
        table.add_row(stage.name, *columns([stage], hardware))
    if len(stages) > 1:
        table.add_section()
        table.add_row("in all", *columns(stages, hardware))
    return table


def told_price(stages: Sequence[PlannedStage], hardware: PlannedHardware) -> str:
    """Hours of devices, and dollars at one or two prices, of all stages together."""
    hours = hardware.devices * hardware.hours(sum(stage.flops for stage in stages))
    prices = [hardware.dollars_per_device_hour, hardware.dollars_elsewhere]
    told = [f"${hours * price:,.2f} at ${price:.2f} an hour" for price in prices if price is not None]
    return f"{hours:,.4g} device-hours in all: {', '.join(told)}."


def told_basis(config: Mapping[str, Any], hardware: PlannedHardware, recipe: str | None) -> str:
    """What the figures rest on: what is counted, what is taken for granted, what is not in them."""
    counted = "FLOPs counted on the network itself, with the layers of an alignment"
    taken = f"{hardware.mfu:.1%} of the peak, which is hardware.mfu and not measured for these settings"
    left_out = "Preparing the data, where encoders and a frozen network's features are computed once, is not in them"
    of_recipe = f" {config[recipe]}" if recipe is not None and recipe in config else ""
    return f"The figures rest on {counted}, and on {taken}. {left_out}.{of_recipe}"


def longest_word(texts: Iterable[str]) -> int:
    """The characters of the longest word, which a column must be wide enough for."""
    return max(len(word) for text in texts for word in text.split())


def columns(stages: Sequence[PlannedStage], hardware: PlannedHardware) -> list[str]:
    """The numbers of one stage, or of several together."""
    steps, images, flops = (sum(getattr(stage, part) for stage in stages) for part in ("steps", "images", "flops"))
    return [
        f"{steps:,}",
        f"{images / 1e6:,.4g}",
        f"{flops / images / 1e9:,.4g}",
        f"{flops:.3g}",
        f"{hardware.hours(flops) / 24:.3g}",
        f"{hardware.dollars(flops):,.2f}",
    ]


class PlannedMemory(NamedTuple):
    """What each device holds at `images` at once, in so many `micro_batches` a step, and why a run would refuse that
    (None: it would not)."""

    images: int
    micro_batches: int
    memory: DeviceMemory
    refused: str | None


def planned_memory(settings: TrainingSettings, device_memory_gib: float | None = None) -> PlannedMemory:
    """Of a GPU of this memory, the micro-batch that training would take."""
    pipeline, hardware, refused = build_pipeline(network_settings(settings), device="meta"), settings.trainer, None
    if hardware.accelerator == "gpu":
        try:
            hardware = fitted(settings, pipeline, device_memory_gib)
        except SettingsError as error:
            refused = str(error)
    images, micro_batches = divide_batch(settings.resolution_stage.global_batch_size, hardware)
    return PlannedMemory(images, micro_batches, memory_held(settings, pipeline, images, micro_batches), refused)


def memory_table(stages: Sequence[tuple[str, TrainingSettings]], device_memory_gib: float | None = None) -> Table:
    """GiB that each device holds, one row a stage; activations are those without activation checkpointing. Below it,
    why a stage would be refused on a GPU of this memory."""
    hardware = stages[0][1].trainer
    title = f"GiB on each of {hardware.world_size} devices, {hardware.strategy} (trainer=...)"
    if hardware.activation_checkpointing:
        title += "; activations without activation_checkpointing"
    parts = [field.name for field in fields(DeviceMemory) if field.type is int]
    table = Table(title=title, title_justify="left", padding=PADDING)
    table.add_column("stage", min_width=longest_word(name for name, _ in stages))
    for column in ("images\nat once", *(IN_A_COLUMN.get(part, part) for part in parts), "in all"):
        table.add_column(column, justify="right")
    for name, settings in stages:
        images, _, memory, refused = planned_memory(settings, device_memory_gib)
        if refused is not None:
            table.caption = f"{table.caption or ''}{name}: {refused}\n"
        numbers = [*(getattr(memory, part) for part in parts), memory.total]
        table.add_row(name, str(images), *(gibibytes(number) for number in numbers))
    return table


def traffic_table(stages: Sequence[tuple[str, TrainingSettings]], device_memory_gib: float | None = None) -> Table:
    """GB that arrive in a step, one row a stage: at each device, and at each machine from others."""
    hardware = stages[0][1].trainer
    title = f"GB that travel in a step, {hardware.nodes} x {hardware.devices} devices, {hardware.strategy}"
    if hardware.sharded:
        again = "weights given back" if hardware.reshard_after_forward else "weights kept"
        title += f", {hardware.sharding} sharding, {again} after forward"
    table = Table(title=title, title_justify="left", padding=PADDING)
    table.add_column("stage", min_width=longest_word(name for name, _ in stages))
    for column in ("micro-batches", "to each device", "to each machine\nfrom others"):
        table.add_column(column, justify="right")
    for name, settings in stages:
        planned, trainer = planned_memory(settings, device_memory_gib), settings.trainer
        travels = step_traffic(
            sum(p.numel() for p in build_pipeline(network_settings(settings), device="meta").dit.parameters()),
            machines=trainer.nodes,
            devices=trainer.devices,
            parts=trainer.parts,
            bf16=trainer.halved,
            micro_batches=planned.micro_batches,
            reshard_after_forward=trainer.reshard_after_forward,
            compressed=trainer.gradient_compression is not None,
        )
        table.add_row(name, str(planned.micro_batches), *(f"{number / 1e9:.3g}" for number in travels))
    return table


def gibibytes(number: int) -> str:
    """Three digits, and "<0.01" for what makes no difference."""
    return "<0.01" if 0 < number < 0.01 * 2**30 else f"{number / 2**30:.3g}"


def show_plan(
    stages: Sequence[tuple[dict[str, Any], dict[str, str]]],
    hardware: Mapping[str, Any],
    console: Console,
    rests_on: Mapping[str, Any] | None = None,
) -> list[PlannedStage]:
    """Prints what stages cost, each a composed configuration with its choices, and what the figures rest on, which
    `rests_on` has for recipes by name; returns the stages' costs.

    Raises SettingsError for settings that cannot be meant.
    """
    known = bind(PlannedHardware, hardware, where="hardware")
    planned, composed = [], []
    for config, chosen in stages:
        settings = training_settings(config, Path("runs"), chosen)
        name = ", ".join(chosen[group] for group in ("resolution_stage", "masking", "mask_ratio"))
        planned.append(planned_stage(name, settings))
        composed.append((name, settings))
    console.print(plan_table(planned, known), highlight=False)
    console.print(told_price(planned, known), highlight=False)
    console.print(told_basis(rests_on or {}, known, stages[0][1].get("recipe")), highlight=False)
    console.print(memory_table(composed, known.device_memory_gib), highlight=False)
    if composed[0][1].trainer.world_size > 1:
        console.print(traffic_table(composed, known.device_memory_gib), highlight=False)
    return planned


def plan_command(config: DictConfig) -> None:
    """Shows the plan that the command line asks for: each stage is this configuration with other choices."""
    own = trusted(config)
    hardware, stages = own["hardware"], own["stages"].get(name_of_stages(own["stages"], choices()), ONE_RUN)
    composed = [with_choices("plan", decisive(changed)) for changed in stages]
    planned = [(without_own(plan), chosen) for plan, chosen in composed]
    for plan, _ in planned:
        as_texts(plan, Configuration)
        tell_missing_start(plan)
    show_plan(planned, hardware, console, own["rests_on"])


def tell_missing_start(config: Mapping[str, Any]) -> None:
    """Says where the command line names weights to start from that are not there: the cost is the same, and a run that
    is still to come may make them, but training would end at once."""
    try:
        if isinstance(start := config.get("init_from"), str) and not is_on_hub(start):  # fetched when it trains
            initial_checkpoint(start)
    except CheckpointError as error:
        console.print(f"init_from={config['init_from']}: {error}", highlight=False)


def decisive(stage: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stage decides its cost: not where its weights come from."""
    return {key: value for key, value in stage.items() if not key.startswith("init_")}


def without_own(config: Mapping[str, Any]) -> dict[str, Any]:
    """What train.py would be told: without the settings that are the plan's."""
    plans = ("hardware", "stages", "expected_mfu", "trust", "rests_on")
    return {key: value for key, value in config.items() if key not in plans}
