"""Train a diffusion transformer: `python train.py +experiment=deferred_mask_75`. `--cfg job` shows what will happen."""

import hydra
from omegaconf import DictConfig

from microdit.cli import composed, console, output_folder, run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    from microdit.training.launch import launch

    launch(*composed(config), output_folder(), console)


def default_config() -> DictConfig:
    with hydra.initialize(version_base="1.3", config_path="conf"):
        return hydra.compose("config")


if __name__ == "__main__":
    run_entry_point(main, default_config)
