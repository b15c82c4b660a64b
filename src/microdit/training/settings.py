"""What a run of training is told, as plain dataclasses: one for each group of `conf/`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch

from microdit.build import build, checked
from microdit.cost.variation import VariationSettings
from microdit.data.prepare.embedded import EmbeddedShapes
from microdit.data.shards.corruption import OnCorrupt
from microdit.distributed.hardware import TrainerSettings
from microdit.encoders.protocols import Autoencoder, TextEncoder
from microdit.evaluation.metric import Metric, built_metrics
from microdit.kinds import (
    ArgumentsOf,
    Images,
    Limits,
    Positive,
    Read,
    Seed,
    SettingsError,
    Share,
    Steps,
    Weights,
    check_arguments,
    shown,
)
from microdit.masking.ratio import MaskRatio
from microdit.masking.token_path import TokenPath
from microdit.objectives.objective import Objective
from microdit.pipeline import check_model
from microdit.representation.alignment import make_alignment
from microdit.sampling.settings import GuidanceInterval, SamplerName, SamplingSettings, SamplingSteps
from microdit.training.optimizers import check_optimizer, scaled_rates
from microdit.training.schedules import Schedule

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class StageSettings:
    """One stage of the recipe (section 5 of the paper's appendix): pictures, noise, and how fast to learn.

    `noise_*`, `learning_rate`, `warmup_steps` and `final_factor` are what objective, optimizer and schedule take unless
    their own settings say otherwise.
    """

    resolution_px: Annotated[int, Limits(1, 16_384)]
    pos_interp_scale: Positive
    noise_mean: float
    noise_std: float
    steps: Steps
    global_batch_size: Images
    learning_rate: float
    final_factor: float
    warmup_steps: Annotated[int, Limits(0, 10**9)]
    gradient_clip_norm: float
    caption_dropout: Share
    ema_decay: Annotated[float, Limits(1e-9, 1 - 1e-9)] | None
    ema_start_step: int


@dataclass(frozen=True)
class MixSource:
    """What `open_mix` reads of a source, and its kind."""

    name: str
    folder: Read
    weight: Positive | Literal["size"] = "size"
    kind: str | None = None


Sources = Annotated[list[Annotated[dict[str, Any], ArgumentsOf(MixSource)]], Limits(1, 1000)]


@dataclass(frozen=True)
class DataMixSettings:
    """Sources and their weights, what validation reads, and which shapes (domains, counts) may be made on first use.

    `kinds` are those of the sources that are read, "real" or "synthetic"; null reads all of them.
    """

    sources: Sources
    validation: Sources
    embedded: dict[str, Any] | None
    kinds: list[str] | None = None

    def of_its_kinds(self) -> "DataMixSettings":
        """With the sources that are read alone. Raises SettingsError for a kind that no source has."""
        if self.kinds is None:
            return self
        there = {str(source.get("kind")) for source in self.sources}
        if missing := sorted(set(self.kinds) - there):
            raise SettingsError(
                f"data_mix.kinds asks for {', '.join(missing)} data, but its sources are "
                f"{', '.join(sorted(there))}: choose another data_mix, or read all sources with data_mix.kinds=null"
            )
        return replace(self, sources=[source for source in self.sources if source.get("kind") in self.kinds])


MOST_THREADS = 256


@dataclass(frozen=True)
class ReadingSettings:
    """How shards are read: threads that read ahead, what to do with broken samples, where remote shards are kept, and
    after how long a wait for them is reported."""

    num_workers: Annotated[int, Limits(0, MOST_THREADS)] | None
    on_corrupt: OnCorrupt
    max_corrupt_share: Annotated[float, Limits(0, 1)]
    cache_folder: str | None
    cache_gigabytes: Annotated[float, Limits(0, 1e9)]
    stall_seconds: Annotated[float, Limits(0.001, 1e9)]


@dataclass(frozen=True)
class SampleSettings:
    """Pictures drawn during training, the same prompts and noise each time; what is None as in `sampling`."""

    prompts: Annotated[list[Annotated[str, Limits(0, 2000)]], Limits(0, 1000)]  # of which a sheet has room for all
    every_n_steps: Steps
    seed: int
    sampler: SamplerName | None = None
    num_inference_steps: SamplingSteps | None = None
    guidance_scale: float | None = None
    guidance_interval: GuidanceInterval | None = None
    temperature: Positive | None = None


@dataclass(frozen=True)
class TrainingSettings:
    """Everything a run is told. `choices` names the files of `conf/` it was composed from, `config` is all they said.

    `init_from`, a run or a checkpoint, gives the weights it starts from: "ema" or "raw", with the optimizer's state if
    `init_optimizer`.
    """

    model: dict[str, Any]
    masking: dict[str, Any]
    mask_ratio: MaskRatio
    moe: dict[str, Any]
    variation: VariationSettings
    objective: dict[str, Any]
    autoencoder: dict[str, Any]
    text_encoder: dict[str, Any]
    data_mix: DataMixSettings
    reading: ReadingSettings
    resolution_stage: StageSettings
    optimizer: dict[str, Any]
    schedule: Schedule
    trainer: TrainerSettings
    sampling: SamplingSettings
    samples: SampleSettings
    metrics: dict[str, Metric]
    loggers: list[dict[str, Any]]
    seed: int
    data_root: Path
    makes_data: bool
    output: Path
    choices: dict[str, str] = field(default_factory=dict)
    init_from: str | None = None
    init_weights: str = "ema"
    init_optimizer: bool = False
    representation: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def bind(kind: type[Settings], plain: Mapping[str, Any], where: str) -> Settings:
    """A settings dataclass from a plain dictionary. Raises SettingsError for a key it does not have, or one missing."""
    check_arguments(kind, plain, where)
    return kind(**plain)


@dataclass(frozen=True)
class Paths:
    """Where things are; see `conf/config.yaml`."""

    data_root: Read
    output_root: str = "runs"
    makes_shapes: bool = True


@dataclass(frozen=True)
class Callbacks:
    """What happens during training beside it."""

    samples: Mapping[str, Any]


Group = Mapping[str, Any]


@dataclass(frozen=True)
class Configuration:
    """The groups and values of a composed configuration: what `config.yaml` holds beside its `choices`."""

    model: Group
    masking: Group
    mask_ratio: Group
    moe: Group
    objective: Group
    autoencoder: Group
    text_encoder: Group
    data_mix: Annotated[Group, ArgumentsOf(DataMixSettings)]
    reading: Group
    resolution_stage: Group
    optimizer: Group
    schedule: Group
    trainer: Group
    callbacks: Annotated[Group, ArgumentsOf(Callbacks)]
    metrics: Mapping[str, Group]
    logger: Mapping[str, Group]
    seed: Seed
    paths: Annotated[Group, ArgumentsOf(Paths)]
    representation: Group = field(default_factory=dict)
    sampling: Group = field(default_factory=dict)
    variation: Group = field(default_factory=dict)
    init_from: Weights | None = None
    init_weights: Literal["ema", "raw"] = "ema"
    init_optimizer: bool = False
    resume: str | None = None
    trust: Any = ()
    name: str | float | bool | None = None


# Groups that are dataclasses here, and those whose file names a class in `_target_`.
GROUPS: dict[str, type] = {
    "data_mix": DataMixSettings,
    "reading": ReadingSettings,
    "resolution_stage": StageSettings,
    "sampling": SamplingSettings,
    "trainer": TrainerSettings,
    "variation": VariationSettings,
}
TARGETS: dict[str, Any] = {
    "masking": TokenPath,
    "mask_ratio": MaskRatio,
    "autoencoder": Autoencoder,
    "text_encoder": TextEncoder,
    "schedule": Schedule,
}
# Groups whose parts have names of their own, which become those of files.
NAMED = ("metrics", "logger")
NAME = re.compile(r"[\w-]{1,60}")
STARTING = ("init_from", "init_weights", "init_optimizer")


def training_settings(config: Mapping[str, Any], output: Path, choices: dict[str, str]) -> TrainingSettings:
    """The settings of a run from its composed configuration, every name checked before anything starts.

    No network is built: what has to be counted on one comes later (`training.run.network_settings`). Raises
    SettingsError naming the key that is wrong and the ones there are.
    """
    check_arguments(Configuration, config, where="")
    for group in NAMED:
        for name in config[group]:
            if not NAME.fullmatch(name):
                raise SettingsError(f"{group}.{shown(name)} is no name: up to 60 letters, digits, _ and - make one")
    bound = {name: bind(kind, config.get(name, {}), where=name) for name, kind in GROUPS.items()}
    if bound["data_mix"].embedded is not None:
        bind(EmbeddedShapes, bound["data_mix"].embedded, where="data_mix.embedded")
    check_model({**config["model"], **config["moe"]})
    if config.get("init_optimizer") and not config.get("init_from"):
        raise SettingsError("init_optimizer=true takes the optimizer's state from another run: name it in init_from")
    built = {name: build(config[name], kind, name) for name, kind in TARGETS.items()}
    mask_ratio, variation = built["mask_ratio"], bound["variation"]
    if max(mask_ratio.ratio(0.0), mask_ratio.ratio(1.0)) > 0 and not built["masking"].drops_patches:
        raise SettingsError(
            "this masking drops no patches, but the mask ratio is above 0: "
            "set mask_ratio=none, or choose masking=deferred or masking=naive"
        )
    if variation.equal_flops_mask_ratio is not None and mask_ratio.ratio(0.0) != mask_ratio.ratio(1.0):
        raise SettingsError(
            "variation.equal_flops_mask_ratio finds a network of equal cost at one mask ratio, and this one changes "
            "during training: set a constant mask_ratio, or compare at equal compute with trainer.max_flops"
        )
    if bound["sampling"].guidance == "path_drop":
        built["masking"].weak_pass(1, (1, 1), torch.device("cpu"))
    checked(config["objective"], Objective, "objective", ["sigma_data"])
    make_alignment(config.get("representation", {}), None)
    check_optimizer(config["optimizer"])
    bound["data_mix"] = bound["data_mix"].of_its_kinds()
    plain = ("model", "masking", "moe", "objective", "autoencoder", "text_encoder")
    return TrainingSettings(
        mask_ratio=mask_ratio,
        optimizer=scaled_rates(config["optimizer"], variation.learning_rate),
        schedule=built["schedule"],
        samples=bind(SampleSettings, config["callbacks"]["samples"], where="callbacks.samples"),
        metrics=built_metrics(config["metrics"]),
        loggers=list(config["logger"].values()),
        seed=config["seed"],
        data_root=Path(config["paths"]["data_root"]),
        makes_data=config["paths"].get("makes_shapes", True),
        output=output,
        choices=choices,
        representation=dict(config.get("representation", {})),
        config=dict(config),
        **{name: dict(config[name]) for name in plain},
        **{name: config[name] for name in STARTING if name in config},
        **bound,
    )
