"""Measure a trained model: `python evaluate.py checkpoint=runs/THE_RUN`. The numbers join the run's result.json."""

import hydra
from omegaconf import DictConfig

from microdit.cli import console, plain, run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    from microdit.evaluation.evaluate import evaluate

    evaluate(**plain(config), console=console)


def default_config() -> DictConfig:
    with hydra.initialize(version_base="1.3", config_path="conf"):
        return hydra.compose("evaluate")


if __name__ == "__main__":
    run_entry_point(main, default_config)
