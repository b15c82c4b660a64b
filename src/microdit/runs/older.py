"""What earlier versions wrote into runs, in today's names, so that their runs resume and load.

The house was moved once (version 0.2): classes have other places, optimizer, schedule and objective became groups.
"""

from collections.abc import Mapping
from typing import Any

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


def todays_pipeline(settings: dict[str, Any]) -> dict[str, Any]:
    """What a pipeline.json says."""
    settings = with_todays_names(settings)
    if "objective" in settings:
        return settings
    sigma_data = settings.pop("sigma_data", None)
    return {**settings, "objective": {"_target_": EDM} | ({} if sigma_data is None else {"sigma_data": sigma_data})}


def todays_config(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.yaml says. One that is damaged is returned as it is: whoever binds it says what is wrong."""
    config = with_todays_names(config)
    if not all(isinstance(config.get(part, {}), dict) for part in ("choices", "resolution_stage", "optimizer")):
        return config
    config.get("choices", {}).pop("latents", None)
    stage = config.get("resolution_stage")
    if isinstance(stage, dict) and "schedule" in stage:
        config["schedule"] = schedule_of(stage, stage.pop("schedule"))
        config.get("choices", {})["schedule"] = config["schedule"]["_target_"].rpartition(".")[2].lower()
    if isinstance(stage, dict) and "objective" not in config and "masking" in config:
        config["objective"] = {"_target_": EDM} | {name: stage.get(name) for name in ("noise_mean", "noise_std")}
        config.get("choices", {})["objective"] = "edm"
    callbacks = config.get("callbacks")
    samples = callbacks.get("samples") if isinstance(callbacks, dict) else None
    if isinstance(samples, dict) and "sampling" not in config:
        config["sampling"] = {name: samples.pop(name) for name in SAMPLING if name in samples}
    if isinstance(stage, dict) and "beta1" in config.get("optimizer", {}):
        config["optimizer"] = optimizer_of(config["optimizer"], stage.get("learning_rate"))
    return config


def with_todays_names(value: Any) -> Any:
    """The same value with classes at their present places and keys by their present names, in a copy."""
    if isinstance(value, Mapping):
        moved = {RENAMED.get(str(name), name): with_todays_names(inner) for name, inner in value.items()}
        target = str(moved.get("_target_", "")).removeprefix("microdit.")
        return moved | ({"_target_": f"microdit.{MOVED[target]}"} if target in MOVED else {})
    return [with_todays_names(inner) for inner in value] if isinstance(value, list) else value


def schedule_of(stage: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The schedule that a stage named."""
    warmup = {"warmup_steps": stage.get("warmup_steps")}
    if name == "constant":
        return {"_target_": "microdit.training.schedules.Constant", **warmup}
    return {"_target_": "microdit.training.schedules.Cosine", **warmup, "final_factor": stage.get("final_factor")}


def optimizer_of(was: Mapping[str, Any], learning_rate: Any) -> dict[str, Any]:
    """AdamW's settings, with Muon's for matrices where the run had a `matrix_step`, in units of the learning rate."""
    adamw = {
        "_target_": "torch.optim.AdamW",
        "lr": learning_rate,
        "betas": [was["beta1"], was["beta2"]],
        "eps": was["eps"],
        "weight_decay": was["weight_decay"],
        "fused": True,
    }
    if was.get("matrix_step") is None:
        return adamw
    muon = {"lr": was["matrix_step"] * learning_rate, "momentum": was["matrix_momentum"]}
    return adamw | {"_target_": "microdit.training.optimizers.MuonWithAdamW", "kinds": {"matrices": muon}}
