"""conf/evaluate.yaml: what it says is what evaluate() takes, with every choice of metrics."""

from pathlib import Path

import hydra
import pytest

import microdit.commands.compose
from microdit.build import build, keyword_names
from microdit.commands.evaluate import evaluate
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import checked_sampling

CONF = Path(__file__).parents[2] / "conf"
METRICS = sorted(path.stem for path in (CONF / "metrics").glob("*.yaml"))


@pytest.fixture(scope="module")
def compose():
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *overrides: microdit.commands.compose.plain(hydra.compose("evaluate", list(overrides)))


def test_its_keys_are_the_arguments_of_evaluate(compose):
    assert {*compose(), "console"} == {*(keyword_names(evaluate) or ())}


def test_its_sampling_is_what_generate_takes(compose):
    checked_sampling({**compose()["sampling"], "seed": 0})


@pytest.mark.parametrize("choice", METRICS)
def test_every_choice_of_metrics_is_built_without_reading_any_weights(compose, choice):
    metrics = compose(f"metrics={choice}")["metrics"]
    assert all(isinstance(build(settings, Metric), Metric) for settings in metrics.values())
    assert bool(metrics) == (choice != "none")


def test_metrics_are_combined_on_the_command_line(compose):
    assert list(compose("metrics=[shapes_loss,compositional]")["metrics"]) == ["shapes_loss", "compositional"]


def test_both_metrics_of_photographs_ask_for_the_same_pictures(compose):
    metrics = compose("metrics=photos")["metrics"]
    shared = [{key: each[key] for key in ("source", "count", "sampling")} for each in metrics.values()]
    assert shared[0] == shared[1]
