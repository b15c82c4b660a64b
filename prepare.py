"""Turn captioned pictures into latent shards: `python prepare.py source=folder source.path=$HOME/pictures`."""

import hydra
from omegaconf import DictConfig

from microdit.commands.compose import run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(config: DictConfig) -> None:
    from microdit.commands.prepare import prepare_command

    prepare_command(config)


if __name__ == "__main__":
    run_entry_point(main, "prepare")
