"""What training costs, before it runs: `python plan.py +scale=xl` for the paper's four stages. Nothing is written."""

import hydra
from omegaconf import DictConfig

from microdit.commands.compose import run_entry_point


@hydra.main(version_base="1.3", config_path="conf", config_name="plan")
def main(config: DictConfig) -> None:
    from microdit.commands.plan import plan_command

    plan_command(config)


if __name__ == "__main__":
    run_entry_point(main, "plan")
