"""What a run of training is told, as plain dataclasses: one for each group of `conf/`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from microdit.build import SettingsError, build, check_names
from microdit.evaluation.metric import Metric
from microdit.model.token_path import TokenPath
from microdit.training.schedules import MaskRatio

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW; the learning rate belongs to the stage."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float


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
    """Where and how it runs. `dollars_per_device_hour` turns seconds into the cost that result.json reports."""

    accelerator: str
    devices: int
    precision: str
    max_steps: int
    device_batch_size: int | None
    compile: bool
    log_every_n_steps: int
    validate_every_n_steps: int
    validation_batch_size: int
    checkpoint_every_n_steps: int
    keep_checkpoints: int
    dollars_per_device_hour: float

    def __post_init__(self) -> None:
        for name in ("max_steps", "log_every_n_steps", "validate_every_n_steps", "checkpoint_every_n_steps"):
            if getattr(self, name) < 1:
                raise SettingsError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        if self.keep_checkpoints < 1:
            raise SettingsError("trainer.keep_checkpoints must be at least 1: a run without checkpoints cannot resume")


@dataclass(frozen=True)
class DataMixSettings:
    """Sources and their weights, what validation reads, and which shapes (domains, counts) may be made on first use."""

    sources: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    embedded: dict[str, Any] | None


@dataclass(frozen=True)
class ReadingSettings:
    """How shards are read: threads that read ahead, what to do with broken samples, where remote shards are kept."""

    num_workers: int
    on_corrupt: str
    max_corrupt_share: float
    cache_folder: str | None
    cache_gigabytes: float


@dataclass(frozen=True)
class SampleSettings:
    """Pictures drawn during training, the same prompts and noise each time."""

    prompts: list[str]
    every_n_steps: int
    num_inference_steps: int
    guidance_scale: float
    seed: int


@dataclass(frozen=True)
class TrainingSettings:
    """Everything a run is told. `choices` names the files of `conf/` it was composed from."""

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
    known = [*groups, "callbacks", "metrics", "logger", "seed", "paths", "resume", "name"]
    check_names(config, known, where="the configuration")
    check_names(config["paths"], ["data_root", "output_root"], where="paths")
    check_names(config["callbacks"], ["samples"], where="callbacks")
    bound = {name: bind(kind, config[name], where=name) for name, kind in GROUPS.items()}
    mask_ratio = build(config["mask_ratio"], MaskRatio)
    if max(mask_ratio.ratio(0.0), mask_ratio.ratio(1.0)) > 0 and not build(config["masking"], TokenPath).drops_patches:
        raise SettingsError(
            "this masking drops no patches, but the mask ratio is above 0: "
            "set mask_ratio=none, or choose masking=deferred or masking=naive"
        )
    return TrainingSettings(
        model={**config["model"], "pos_interp_scale": bound["resolution_stage"].pos_interp_scale},
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
        **bound,
    )
