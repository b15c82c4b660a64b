"""conf/evaluate.yaml: what it says is what evaluate() takes, with every choice of metrics."""

import pytest
from compositions import CONF, plain

from microdit.build import build
from microdit.commands.evaluate import Devices, evaluate
from microdit.evaluation.metric import Metric
from microdit.evaluation.subject import checked_sampling
from microdit.kinds import check_arguments, kinds_of
from microdit.sampling.settings import SamplingSettings

METRICS = sorted(path.stem for path in (CONF / "metrics").glob("*.yaml"))


def compose(*overrides: str) -> dict:
    return plain(*overrides, config="evaluate")


def test_its_keys_are_the_arguments_of_evaluate_and_how_many_processes_call_it():
    assert {*compose(), "console", "ranks"} == {*(kinds_of(evaluate)), "trust", "trainer"}
    check_arguments(Devices, compose()["trainer"], "trainer")
    assert Devices(**compose()["trainer"]) == Devices(devices=1)


def test_its_sampling_is_what_generate_takes():
    checked_sampling({**compose()["sampling"], "seed": 0}, SamplingSettings())


@pytest.mark.parametrize("choice", METRICS)
def test_every_choice_of_metrics_is_built_without_reading_any_weights(choice):
    metrics = compose(f"metrics={choice}")["metrics"]
    assert all(isinstance(build(settings, Metric), Metric) for settings in metrics.values())
    assert bool(metrics) == (choice != "none")


def test_metrics_are_combined_on_the_command_line():
    assert list(compose("metrics=[shapes_loss,compositional]")["metrics"]) == ["shapes_loss", "compositional"]


@pytest.mark.parametrize(("choice", "count"), [("photos", 30_000), ("photos_cifar", 10_000), ("paper", 30_000)])
def test_metrics_of_photographs_ask_for_the_same_pictures(choice, count):
    metrics = [each for name, each in compose(f"metrics={choice}")["metrics"].items() if name != "geneval"]
    shared = [{key: each[key] for key in ("source", "count", "sampling")} for each in metrics]
    assert len(shared) >= 2
    assert all(one == shared[0] and one["count"] == count for one in shared)


def test_the_papers_tables_need_fid_clip_fid_clip_score_and_geneval():
    assert {*compose("metrics=paper")["metrics"]} == {"fid", "clip_fid", "clip_score", "geneval"}
