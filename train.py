"""Train a diffusion transformer: `python train.py +experiment=deferred_mask_75`. `--cfg job` shows what will happen."""

import hydra
from omegaconf import DictConfig

from microdit import cli  # as a module: SLURM jobs get a copy of main, and a console cannot be copied


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    from microdit.training.again import launch_unless_finished
    from microdit.training.chain import Stage, run_chain

    with cli.told_in_a_sweep(config):
        if cli.is_chain(config):
            stages, expected_mfu = cli.composed_stages(config)
            run_chain([Stage(*stage) for stage in stages], cli.output_folder(), expected_mfu, cli.console)
        else:
            launch_unless_finished(*cli.composed(config), cli.output_folder(), cli.console)


def default_config() -> DictConfig:
    with hydra.initialize(version_base="1.3", config_path="conf"):
        return hydra.compose("config")


if __name__ == "__main__":
    cli.run_entry_point(main, default_config)
