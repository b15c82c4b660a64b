"""conf/evaluate.yaml: what it says is what evaluate() takes, with every choice of metrics."""

import pytest
from compositions import CONF, plain

from microdit.build import build
from microdit.commands.evaluate import evaluate
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import checked_sampling
from microdit.kinds import kinds_of
from microdit.sampling.settings import SamplingSettings

METRICS = sorted(path.stem for path in (CONF / "metrics").glob("*.yaml"))


def compose(*overrides: str) -> dict:
    return plain(*overrides, config="evaluate")


def test_its_keys_are_the_arguments_of_evaluate():
    assert {*compose(), "console"} == {*(kinds_of(evaluate)), "trust"}


def test_its_sampling_is_what_generate_takes():
    checked_sampling({**compose()["sampling"], "seed": 0}, SamplingSettings())


@pytest.mark.parametrize("choice", METRICS)
def test_every_choice_of_metrics_is_built_without_reading_any_weights(choice):
    metrics = compose(f"metrics={choice}")["metrics"]
    assert all(isinstance(build(settings, Metric), Metric) for settings in metrics.values())
    assert bool(metrics) == (choice != "none")


def test_metrics_are_combined_on_the_command_line():
    assert list(compose("metrics=[shapes_loss,compositional]")["metrics"]) == ["shapes_loss", "compositional"]


def test_both_metrics_of_photographs_ask_for_the_same_pictures():
    metrics = compose("metrics=photos")["metrics"]
    shared = [{key: each[key] for key in ("source", "count", "sampling")} for each in metrics.values()]
    assert shared[0] == shared[1]
