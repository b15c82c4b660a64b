"""Draw pictures with a trained model: `python generate.py checkpoint=runs/... prompts='["a red circle"]'`."""

import hydra
from omegaconf import DictConfig

from microdit.commands.compose import run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
def main(config: DictConfig) -> None:
    from microdit.commands.generate import generate_command

    generate_command(config)


if __name__ == "__main__":
    run_entry_point(main, "generate")
