"""What training costs, before it runs: `python plan.py +scale=xl` for the paper's four stages. Nothing is written."""

import hydra
from omegaconf import DictConfig

from microdit.cli import choices, console, plain, run_entry_point, with_choices


@hydra.main(version_base="1.3", config_path="conf", config_name="plan")
def main(config: DictConfig) -> None:
    from microdit.training.planning import show_plan

    own = plain(config)
    hardware, stages = own["hardware"], own["stages"][choices().get("scale", "laptop")]
    composed = [with_choices("plan", decisive(changed)) for changed in stages]
    show_plan([(without_own(plan), chosen) for plan, chosen in composed], hardware, console)


def decisive(stage: dict) -> dict:
    """What of a stage decides its cost: not where its weights come from."""
    return {key: value for key, value in stage.items() if not key.startswith("init_")}


def without_own(config: dict) -> dict:
    """What train.py would be told: without the settings that are the plan's."""
    return {key: value for key, value in config.items() if key not in ("hardware", "stages", "expected_mfu")}


def default_config() -> DictConfig:
    with hydra.initialize(version_base="1.3", config_path="conf"):
        return hydra.compose("plan")


if __name__ == "__main__":
    run_entry_point(main, default_config)
