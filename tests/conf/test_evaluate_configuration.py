"""conf/evaluate.yaml: what it says is what evaluate() takes, with every choice of metrics."""

import re
import subprocess
from pathlib import Path
from unittest.mock import patch

import hydra
import pytest
import yaml
from compositions import CONF, plain
from hydra.core.hydra_config import HydraConfig

from microdit.build import build
from microdit.commands.compose import Stage, composed_stages
from microdit.commands.evaluate import Devices, evaluate
from microdit.evaluation.geneval.metric import GenEval
from microdit.evaluation.metric import Look, Metric, built_metrics
from microdit.evaluation.subject import checked_sampling
from microdit.kinds import check_arguments, kinds_of
from microdit.sampling.settings import SamplingSettings
from microdit.training.settings import training_settings

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


@pytest.mark.parametrize(("scale", "photos"), [("tiny", "photos_cifar"), ("xl", "photos")])
def test_models_of_photographs_end_with_photos_and_are_looked_at_by_geneval_while_they_train(scale, photos):
    metrics = plain("name=a", f"+scale={scale}")["metrics"]
    assert metrics.items() >= compose(f"metrics={photos}")["metrics"].items()
    (look,) = metrics.keys() - compose(f"metrics={photos}")["metrics"].keys()
    built = build(metrics[look], Metric)
    assert isinstance(built, Look)
    assert isinstance(built.inner, GenEval)
    whole, few = compose("metrics=geneval")["metrics"]["geneval"], metrics[look]["metric"]
    assert {name for name in whole if whole[name] != few[name]} == {"prompts_per_tag", "pictures_per_prompt"}
    assert len(built.inner.samples()) * few["pictures_per_prompt"] == 60
    assert plain("name=a", f"+scale={scale}", "metrics=none")["metrics"] == {}


def test_the_papers_tables_need_fid_clip_fid_clip_score_and_geneval():
    assert {*compose("metrics=paper")["metrics"]} == {"fid", "clip_fid", "clip_score", "geneval"}


# The commands of the documents.


def commands(script: str) -> list[list[str]]:
    """The arguments of each command for the paper's tables, as a shell has them."""
    document = (CONF.parent / "docs/evaluation.md").read_text()
    section = document.partition("### The paper's tables")[2].partition("\n### ")[0]
    lines = re.findall(rf"python {script}\.py ([^`\n]*)", section)
    told = [subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True) for line in lines]
    return [each.stdout.decode().split("\0")[:-1] for each in told]


@pytest.mark.parametrize("arguments", commands("evaluate"), ids=" ".join)
def test_every_command_that_evaluates_for_the_papers_tables_is_accepted(arguments):
    settings = compose(*arguments)
    check_arguments(Devices, settings.pop("trainer"), "trainer")
    del settings["trust"]
    check_arguments(evaluate, settings, "", given_later=["console"])
    assert built_metrics(settings["metrics"])


def chain_of(arguments: list[str], output: Path) -> list[Stage]:
    """The first and the last stage of a chain."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("stages", [*arguments, f"hydra.runtime.output_dir={output}"], return_hydra_config=True)
        with patch.object(HydraConfig, "get", lambda: config.hydra):
            of_scale = config.stages.xl
            config.stages.xl = [of_scale[0], of_scale[-1]]
            return composed_stages(config)[0]


def test_the_papers_tables_have_a_command_for_each_of_their_rows(tmp_path):
    chains = [arguments[2:] for arguments in commands("train") if arguments[:2] == ["-cn", "stages"]]
    rows, ends = [], []
    for arguments in chains:
        first, last = chain_of(arguments, tmp_path)
        assert first.choices["resolution_stage"] == "res256_pretrain"
        rows.append([last.choices[group] for group in ("model", "data_mix", "autoencoder")])
        (folder,) = (text.partition("=")[2] for text in arguments if text.startswith("hydra.run.dir="))
        ends.append(f"{folder}/4-{last.name}")
        for stage in (first, last):
            training_settings(stage.config, tmp_path, stage.choices)
    for table in ("paper_table_1", "paper_table_2"):
        layout = yaml.safe_load((CONF.parent / "experiments" / table / "report.yaml").read_text())
        assert [row for row in layout["expected"] if row[0] == "xl"] == sorted(rows, key=layout["expected"].index)
        assert [f"experiments/{table}", *ends] in commands("report")
    paper = [arguments for arguments in commands("evaluate") if "metrics=paper" in arguments]
    assert [arguments[0] for arguments in paper] == [f"checkpoint={end}" for end in ends]


def test_every_other_command_that_trains_for_them_is_accepted(tmp_path):
    for arguments in commands("train"):
        if arguments[0] == "-m":
            firsts = [re.sub(r",.*", "", each) for each in arguments[1:]]
            settings = training_settings(plain("name=a", *firsts), tmp_path, {})
            assert {*settings.metrics} == {*compose("metrics=photos_cifar")["metrics"], "geneval_look"}
