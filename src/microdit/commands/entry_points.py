"""The commands by name: what `python train.py` calls, and `microdit-train` where the package is installed."""

from collections.abc import Callable

import hydra
from omegaconf import DictConfig

from microdit.commands.compose import run_entry_point
from microdit.commands.help import CONF
from microdit.commands.messages import run_told

# What a command needs is imported when it runs: --help and mistakes in the command line wait for no torch.


def composed_of(config_name: str) -> Callable[[Callable[[DictConfig], None]], Callable[[], None]]:
    """Makes a command of what takes a configuration: that file of conf/, changed by the command line."""

    def command_of(job: Callable[[DictConfig], None]) -> Callable[[], None]:
        def command() -> None:
            # pkg:// is one name for a checkout's files and a wheel's; other programs compose from it as well, by
            # hydra.searchpath=[pkg://microdit.conf].
            main = hydra.main(version_base="1.3", config_path=f"pkg://{CONF}", config_name=config_name)(job)
            run_entry_point(main, config_name)

        command.__doc__ = job.__doc__
        return command

    return command_of


@composed_of("config")
def train(config: DictConfig) -> None:
    """Train a diffusion transformer: `train.py +experiment=deferred_mask_75`. `--cfg job` shows what will happen."""
    from microdit.commands.train import train_command

    train_command(config)


@composed_of("generate")
def generate(config: DictConfig) -> None:
    """Draw pictures with a trained model: `generate.py checkpoint=runs/... prompts='["a red circle"]'`."""
    from microdit.commands.generate import generate_command

    generate_command(config)


@composed_of("prepare")
def prepare(config: DictConfig) -> None:
    """Turn captioned pictures into latent shards: `prepare.py source=folder source.path=$HOME/pictures`."""
    from microdit.commands.prepare import prepare_command

    prepare_command(config)


@composed_of("evaluate")
def evaluate(config: DictConfig) -> None:
    """Measure a trained model: `evaluate.py checkpoint=runs/THE_RUN`. The numbers join the run's result.json."""
    from microdit.commands.evaluate import evaluate_command

    evaluate_command(config)


@composed_of("plan")
def plan(config: DictConfig) -> None:
    """What training costs, before it runs: `plan.py +scale=xl` for the paper's four stages. Nothing is written."""
    from microdit.commands.plan import plan_command

    plan_command(config)


@composed_of("demo")
def demo(config: DictConfig) -> None:
    """A page to draw with a trained model: `demo.py checkpoint=runs/...`."""
    from microdit.commands.demo import demo_command

    demo_command(config)


def export() -> None:
    """Write a network for others: `export.py runs/THE_RUN`."""
    from microdit.commands.export import export_command

    run_told(export_command)


def report() -> None:
    """Tables and figures from runs: `report.py experiments/headline runs/sweep_...`, or from results.csv alone."""
    from microdit.commands.report import report_command

    run_told(report_command)
