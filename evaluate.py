"""Measure a trained model: `python evaluate.py checkpoint=runs/THE_RUN`. The numbers join the run's result.json."""

import hydra
from omegaconf import DictConfig

from microdit.commands.compose import run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
def main(config: DictConfig) -> None:
    from microdit.commands.evaluate import evaluate_command

    evaluate_command(config)


if __name__ == "__main__":
    run_entry_point(main, "evaluate")
