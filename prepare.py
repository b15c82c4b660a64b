"""Turn captioned pictures into latent shards: `python prepare.py source=folder source.path=$HOME/pictures`."""

import hydra
from omegaconf import DictConfig

from microdit.cli import choices, plain, run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="prepare")
def main(config: DictConfig) -> None:
    from microdit.preparation import run_preparation

    settings, chosen = plain(config), choices()
    print(run_preparation(settings, chosen["autoencoder"], chosen["text_encoder"]))


def default_config() -> DictConfig:
    with hydra.initialize(version_base="1.3", config_path="conf"):
        return hydra.compose("prepare")


if __name__ == "__main__":
    run_entry_point(main, default_config)
