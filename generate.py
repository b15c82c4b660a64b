"""Draw pictures with a trained model: `python generate.py checkpoint=runs/... prompts='["a red circle"]'`."""

import hydra
from omegaconf import DictConfig

from microdit.cli import console, plain, run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
def main(config: DictConfig) -> None:
    from microdit.generation import generate_grid

    console.print(f"wrote {generate_grid(**plain(config))}", highlight=False)


def default_config() -> DictConfig:
    with hydra.initialize(version_base="1.3", config_path="conf"):
        return hydra.compose("generate")


if __name__ == "__main__":
    run_entry_point(main, default_config)
