"""A page to draw with a trained model: `python demo.py checkpoint=runs/...`."""

import hydra
from omegaconf import DictConfig

from microdit.commands.compose import run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="demo")
def main(config: DictConfig) -> None:
    from microdit.commands.demo import demo_command

    demo_command(config)


if __name__ == "__main__":
    run_entry_point(main, "demo")
