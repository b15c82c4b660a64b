"""What a run of training is told, as plain dataclasses: one for each group of `conf/`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from microdit.build import SettingsError, build, check_names
from microdit.evaluation.metric import Metric
from microdit.model.token_path import TokenPath
from microdit.training.schedules import MaskRatio
from microdit.training.variation import VariationSettings, inputs_of, varied_model

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW, and Muon for the blocks' matrices where `matrix_step` is given; the learning rate belongs to the stage.

    `matrix_step`: Muon's learning rate in units of the stage's. null: AdamW for all weights.
    """

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    matrix_step: float | None
    matrix_momentum: float


@dataclass(frozen=True)
class StageSettings:
    """One stage of the recipe (section 5 of the paper's appendix): pictures, noise, and how fast to learn."""

    resolution_px: int
    pos_interp_scale: float
    noise_mean: float
    noise_std: float
    steps: int
    global_batch_size: int
    learning_rate: float
    schedule: str
    final_factor: float
    warmup_steps: int
    gradient_clip_norm: float
    caption_dropout: float
    ema_decay: float | None
    ema_start_step: int

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise SettingsError(f'resolution_stage.schedule must be "constant" or "cosine", got "{self.schedule}"')
        if not 0 <= self.caption_dropout < 1:
            raise SettingsError(f"resolution_stage.caption_dropout must be in [0, 1), got {self.caption_dropout}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise SettingsError(f"resolution_stage.ema_decay must be in (0, 1) or null, got {self.ema_decay}")


@dataclass(frozen=True)
class TrainerSettings:
    """Where and how it runs, and when it ends: after `max_steps` or `max_flops`, whichever comes first.

    `strategy` says how several devices share the work: "ddp" (each holds the whole network) or "fsdp" (each holds a
    part of it). `device_batch_size` is the most a device computes at once. `dollars_per_device_hour` turns seconds into
    the cost that result.json reports; `peak_tflops` is what MFU is a share of, measured on the spot if null.
    `activation_checkpointing` saves memory for time: blocks are computed again in the backward pass.
    """

    accelerator: str
    nodes: int
    devices: int
    strategy: str
    precision: str
    max_steps: int
    max_flops: float | None
    device_batch_size: int | None
    compile: bool | None
    gradient_compression: str | None
    max_skipped_steps: int
    collective_timeout_minutes: float
    log_every_n_steps: int
    validate_every_n_steps: int
    validation_batch_size: int
    checkpoint_every_n_steps: int
    keep_checkpoints: int
    keep_every_n_steps: int | None
    peak_tflops: float | None
    dollars_per_device_hour: float
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        at_least_one = ("nodes", "devices", "max_steps", "log_every_n_steps", "validate_every_n_steps")
        for name in (*at_least_one, "checkpoint_every_n_steps", "validation_batch_size"):
            if getattr(self, name) < 1:
                raise SettingsError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_flops", "device_batch_size", "keep_every_n_steps", "peak_tflops"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"trainer.{name} must be above 0 or null, got {value}")
        if self.keep_checkpoints < 1:
            raise SettingsError("trainer.keep_checkpoints must be at least 1: a run without checkpoints cannot resume")
        if self.max_skipped_steps < 0:
            raise SettingsError(f"trainer.max_skipped_steps must not be negative, got {self.max_skipped_steps}")
        if self.strategy not in ("ddp", "fsdp"):
            raise SettingsError(f'trainer.strategy must be "ddp" or "fsdp", got "{self.strategy}"')
        if self.gradient_compression not in (None, "bf16"):
            raise SettingsError(f'trainer.gradient_compression must be "bf16" or null, got {self.gradient_compression}')
        if self.gradient_compression and (self.strategy != "ddp" or self.world_size == 1):
            raise SettingsError(
                "trainer.gradient_compression works between several devices with trainer.strategy=ddp; set it to null"
            )

    @property
    def world_size(self) -> int:
        """Devices of all nodes together: one process each."""
        return self.nodes * self.devices

    @property
    def compiles(self) -> bool:
        """Whether the network is compiled: by default on GPUs, where it pays."""
        return self.accelerator == "gpu" if self.compile is None else self.compile

    @property
    def sharded(self) -> bool:
        """Whether each device holds only a part of the network."""
        return self.strategy == "fsdp" and self.world_size > 1


@dataclass(frozen=True)
class DataMixSettings:
    """Sources and their weights, what validation reads, and which shapes (domains, counts) may be made on first use.

    `kinds` are those of the sources that are read, "real" or "synthetic"; null reads all of them.
    """

    sources: list[dict[str, Any]]
    validation: list[dict[str, Any]]
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


@dataclass(frozen=True)
class ReadingSettings:
    """How shards are read: threads that read ahead, what to do with broken samples, where remote shards are kept, and
    after how long a wait for them is reported."""

    num_workers: int
    on_corrupt: str
    max_corrupt_share: float
    cache_folder: str | None
    cache_gigabytes: float
    stall_seconds: float

    def __post_init__(self) -> None:
        if not self.stall_seconds > 0:
            raise SettingsError(f"reading.stall_seconds must be above 0, got {self.stall_seconds}")


@dataclass(frozen=True)
class SampleSettings:
    """Pictures drawn during training, the same prompts and noise each time. As `LatentDiffusion.generate` has them:
    `guidance_interval` is two noise levels, or None for all of them."""

    prompts: list[str]
    every_n_steps: int
    num_inference_steps: int
    guidance_scale: float
    guidance_interval: list[float] | None
    sampler: str
    temperature: float
    seed: int


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
    autoencoder: dict[str, Any]
    text_encoder: dict[str, Any]
    data_mix: DataMixSettings
    reading: ReadingSettings
    resolution_stage: StageSettings
    optimizer: OptimizerSettings
    trainer: TrainerSettings
    samples: SampleSettings
    metrics: dict[str, Metric]
    loggers: list[dict[str, Any]]
    seed: int
    data_root: Path
    output: Path
    choices: dict[str, str] = field(default_factory=dict)
    init_from: str | None = None
    init_weights: str = "ema"
    init_optimizer: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def pipeline(self) -> dict[str, Any]:
        """What build_pipeline needs: the network at this stage's resolution, and its encoders."""
        return {
            "model": {**self.model, **self.moe},
            "token_path": self.masking,
            "autoencoder": self.autoencoder,
            "text_encoder": self.text_encoder,
        }


def bind(kind: type[Settings], plain: Mapping[str, Any], where: str) -> Settings:
    """A settings dataclass from a plain dictionary. Raises SettingsError for a key it does not have, or one missing."""
    check_names(plain, [f.name for f in fields(kind)], where)  # type: ignore[arg-type]
    try:
        return kind(**plain)
    except TypeError as error:
        raise SettingsError(f"{where}: {error}") from error


GROUPS: dict[str, type] = {
    "data_mix": DataMixSettings,
    "reading": ReadingSettings,
    "resolution_stage": StageSettings,
    "optimizer": OptimizerSettings,
    "trainer": TrainerSettings,
}


def training_settings(config: Mapping[str, Any], output: Path, choices: dict[str, str]) -> TrainingSettings:
    """The settings of a run from its composed configuration, every name checked before anything starts.

    Raises SettingsError naming the key that is wrong and the ones there are.
    """
    groups = ["model", "masking", "mask_ratio", "moe", "autoencoder", "text_encoder", *GROUPS]
    starting = ("init_from", "init_weights", "init_optimizer")
    known = [*groups, "variation", "callbacks", "metrics", "logger", "seed", "paths", "resume", "name", *starting]
    check_names(config, known, where="the configuration")
    check_names(config["paths"], ["data_root", "output_root"], where="paths")
    check_names(config["callbacks"], ["samples"], where="callbacks")
    bound = {name: bind(kind, config[name], where=name) for name, kind in GROUPS.items()}
    if config.get("init_weights", "ema") not in ("ema", "raw"):
        raise SettingsError(f'init_weights must be "ema" or "raw", got "{config["init_weights"]}"')
    if config.get("init_optimizer") and not config.get("init_from"):
        raise SettingsError("init_optimizer=true takes the optimizer's state from another run: name it in init_from")
    mask_ratio = build(config["mask_ratio"], MaskRatio)
    if max(mask_ratio.ratio(0.0), mask_ratio.ratio(1.0)) > 0 and not build(config["masking"], TokenPath).drops_patches:
        raise SettingsError(
            "this masking drops no patches, but the mask ratio is above 0: "
            "set mask_ratio=none, or choose masking=deferred or masking=naive"
        )
    variation = bind(VariationSettings, config.get("variation", {}), where="variation")
    if variation.equal_flops_mask_ratio is not None and mask_ratio.ratio(0.0) != mask_ratio.ratio(1.0):
        raise SettingsError(
            "variation.equal_flops_mask_ratio finds a network of equal cost at one mask ratio, and this one changes "
            "during training: set a constant mask_ratio, or compare at equal compute with trainer.max_flops"
        )
    stage = bound["resolution_stage"]
    bound["resolution_stage"] = replace(stage, learning_rate=stage.learning_rate * variation.learning_rate)
    bound["data_mix"] = bound["data_mix"].of_its_kinds()
    model = varied_model(
        config["model"],
        config["moe"],
        config["masking"],
        mask_ratio.ratio(0.0),
        lambda: inputs_of(config["autoencoder"], config["text_encoder"], stage.resolution_px),
        variation,
    )
    return TrainingSettings(
        model={**model, "pos_interp_scale": stage.pos_interp_scale},
        masking=dict(config["masking"]),
        mask_ratio=mask_ratio,
        moe=dict(config["moe"]),
        autoencoder=dict(config["autoencoder"]),
        text_encoder=dict(config["text_encoder"]),
        samples=bind(SampleSettings, config["callbacks"]["samples"], where="callbacks.samples"),
        metrics={name: build(plain, Metric) for name, plain in config["metrics"].items()},
        loggers=list(config["logger"].values()),
        seed=config["seed"],
        data_root=Path(config["paths"]["data_root"]),
        output=output,
        choices=choices,
        config=dict(config),
        **{name: config[name] for name in starting if name in config},
        **bound,
    )
