"""What earlier versions wrote into runs, in today's names, so that their runs resume and load.

The house was moved once (version 0.2): classes have other places, optimizer, schedule and objective became groups.
"""

from collections.abc import Mapping
from typing import Any

from microdit.kinds import check_arguments, check_kind

MOVED = {
    "model.token_path.Unmasked": "masking.none.Unmasked",
    "model.token_path.Naive": "masking.naive.Naive",
    "model.token_path.Deferred": "masking.deferred.Deferred",
    "model.maskdit.MaskDiT": "masking.maskdit.MaskDiT",
    "training.schedules.ConstantMaskRatio": "masking.ratio.ConstantMaskRatio",
    "training.schedules.FallingMaskRatio": "masking.ratio.FallingMaskRatio",
    "training.tensorboard.PatientTensorBoard": "training.callbacks.loggers.PatientTensorBoard",
    "evaluation.shapes_metric.ShapesCompositional": "evaluation.shapes.compositional.ShapesCompositional",
    "evaluation.shapes_frechet.ShapesFrechet": "evaluation.shapes.frechet.ShapesFrechet",
    "evaluation.shapes_loss.ShapesDenoisingLoss": "evaluation.shapes.loss.ShapesDenoisingLoss",
}
RENAMED = {"alike_queries_and_keys": "mimetic_init", "longest_position_wave": "max_period"}
SAMPLING = ("sampler", "num_inference_steps", "guidance_scale", "guidance_interval", "temperature")  # were of the grids
EDM = "microdit.objectives.edm.EDM"
INCEPTION = {"_target_": "microdit.evaluation.features.InceptionFeatures", "resize": "torchmetrics"}


def todays_pipeline(settings: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline.json says."""
    settings = with_todays_names(settings)
    if "objective" in settings:
        return settings
    sigma_data = settings.pop("sigma_data", None)
    return {**settings, "objective": {"_target_": EDM} | ({} if sigma_data is None else {"sigma_data": sigma_data})}


def todays_config(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.yaml says. SettingsError, which names the key, where that is not what an older one can have said;
    whoever binds it says what else is wrong."""
    config = with_todays_names(config)
    for part in ("choices", "resolution_stage", "optimizer", "trainer"):
        check_kind(config.get(part, {}), Mapping, part)
    config.get("choices", {}).pop("latents", None)
    stage = config.get("resolution_stage", {})
    if "schedule" in stage:
        config["schedule"] = schedule_of(stage, stage.pop("schedule"))
        config.get("choices", {})["schedule"] = config["schedule"]["_target_"].rpartition(".")[2].lower()
    if stage and "objective" not in config and "masking" in config:
        config["objective"] = {"_target_": EDM} | {name: stage.get(name) for name in ("noise_mean", "noise_std")}
        config.get("choices", {})["objective"] = "edm"
    callbacks = config.get("callbacks")
    samples = callbacks.get("samples") if isinstance(callbacks, dict) else None
    if isinstance(samples, dict) and "sampling" not in config:
        config["sampling"] = {name: samples.pop(name) for name in SAMPLING if name in samples}
    if stage and "beta1" in config.get("optimizer", {}):
        check_kind(stage.get("learning_rate"), float, "resolution_stage.learning_rate")
        check_arguments(optimizer_of, config["optimizer"], "optimizer")
        config["optimizer"] = optimizer_of(stage["learning_rate"], **config["optimizer"])
    return config


def with_todays_names(value: Any) -> Any:
    """The same value with classes at their present places and keys by their present names, in a copy."""
    if isinstance(value, Mapping):
        moved = {RENAMED.get(str(name), name): with_todays_names(inner) for name, inner in value.items()}
        target = str(moved.get("_target_", "")).removeprefix("microdit.")
        if "inception_weights" in moved:
            weights = moved.pop("inception_weights")
            moved["features"] = moved.get("features") or {**INCEPTION, "weights": weights}
        return moved | ({"_target_": f"microdit.{MOVED[target]}"} if target in MOVED else {})
    return [with_todays_names(inner) for inner in value] if isinstance(value, list) else value


def schedule_of(stage: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The schedule that a stage named."""
    warmup = {"warmup_steps": stage.get("warmup_steps")}
    if name == "constant":
        return {"_target_": "microdit.training.schedules.Constant", **warmup}
    return {"_target_": "microdit.training.schedules.Cosine", **warmup, "final_factor": stage.get("final_factor")}


def optimizer_of(
    learning_rate: float,
    /,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    matrix_step: float | None = None,
    matrix_momentum: float = 0.95,
) -> dict[str, Any]:
    """AdamW's settings, with Muon's for matrices where the run had a `matrix_step`, in units of the learning rate."""
    adamw = {
        "_target_": "torch.optim.AdamW",
        "lr": learning_rate,
        "betas": [beta1, beta2],
        "eps": eps,
        "weight_decay": weight_decay,
        "fused": True,
    }
    if matrix_step is None:
        return adamw
    muon = {"lr": matrix_step * learning_rate, "momentum": matrix_momentum}
    return adamw | {"_target_": "microdit.training.optimizers.MuonWithAdamW", "kinds": {"matrices": muon}}
