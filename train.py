"""Train a diffusion transformer: `python train.py +experiment=deferred_mask_75`. `--cfg job` shows what will happen."""

import hydra
from omegaconf import DictConfig

from microdit.commands.compose import run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    from microdit.commands.train import train_command

    train_command(config)


if __name__ == "__main__":
    run_entry_point(main, "config")
