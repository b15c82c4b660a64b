"""Metrics that a run is measured with while it trains: when, on how many ranks, and what they leave alone."""

import pytest
from rich.console import Console

from microdit.build import SettingsError
from microdit.checkpoints.reading import network_weights
from microdit.evaluation.metric import Look
from microdit.evaluation.subject import Subject
from microdit.pipeline import LatentDiffusion
from microdit.runs.folder import checkpoints_of
from microdit.training.run import train

FEW = "{domains: [synthetic], prompts_per_skill: 1, colour_prompts: 1, sampling: {num_inference_steps: 2, seed: 0}}"
COMPOSITIONAL = f"{{_target_: microdit.evaluation.shapes.compositional.ShapesCompositional, {FEW[1:]}"
SHORT = ["trainer.max_steps=7", "trainer.checkpoint_every_n_steps=3", "trainer.keep_checkpoints=9"]


def looks(steps: int) -> str:
    return (
        f"+metrics.seen={{_target_: microdit.evaluation.metric.Look, every_n_steps: {steps}, metric: {COMPOSITIONAL}}}"
    )


@pytest.fixture(scope="module")
def overall() -> str:
    return "look/compositional/overall"


@pytest.fixture
def trained(run_settings, tmp_path):
    """trained(name, ...): the record of a run that went on from the checkpoint of a step, where one is named."""

    def run(name: str, *overrides: str, step: int | None = None) -> dict:
        folder = tmp_path / name
        checkpoint = None if step is None else folder / f"checkpoints/step_{step:07d}.ckpt"
        return train(run_settings(*SHORT, *overrides, output=folder), Console(quiet=True), checkpoint)

    return run


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Where each look was kept, from now on."""
    kept, evaluate = [], Look.evaluate

    def evaluate_and_count(look, subject):
        kept.append(subject.kept_in.name)
        return evaluate(look, subject)

    monkeypatch.setattr(Look, "evaluate", evaluate_and_count)
    return kept


def test_it_is_measured_at_its_steps_and_at_the_end_and_training_is_as_without(trained, logged, overall, tmp_path):
    record, plain = trained("looked", looks(3)), trained("plain")
    assert [*logged(tmp_path / "looked", overall)] == [2, 5]  # rows are called by the steps before
    assert record[overall] >= 0
    kept = tmp_path / "looked/evaluation"
    for step in (3, 6):
        assert (kept / f"checkpoint_step_{step:07d}/seen.png").is_file()
        assert (kept / f"look/checkpoint_step_{step:07d}/skills.tar").is_file()
    assert (kept / "seen.png").is_file()
    assert record["validation/loss"] == plain["validation/loss"]
    assert overall not in plain
    ends = [network_weights(checkpoints_of(tmp_path / name)[-1], "raw") for name in ("looked", "plain")]
    assert all(bool((ends[0][name] == ends[1][name]).all()) for name in ends[0])


def test_a_run_that_was_stopped_before_a_look_first_has_it_and_no_other_twice(
    trained, logged, overall, counted, tmp_path
):
    trained("run")
    assert counted == []
    trained("run", looks(3), step=6)
    assert counted == ["checkpoint_step_0000006", "evaluation"]
    assert [*logged(tmp_path / "run", overall)] == [5]
    trained("run", looks(3), step=6)
    assert counted[2:] == ["evaluation"]
    assert [*logged(tmp_path / "run", overall)] == [5]


def test_what_stands_in_the_way_of_a_look_is_told_and_training_goes_on(trained, monkeypatch, caplog, overall):
    def evaluate(look, subject):
        if subject.label:
            raise OSError("the disk is full")
        return {}, None

    monkeypatch.setattr(Look, "evaluate", evaluate)
    assert trained("run", looks(3))["status"] == "finished"
    told = [record.getMessage() for record in caplog.records if "seen" in record.getMessage()]
    assert told == [
        f"metrics.seen is not measured at step {step} (the disk is full); training goes on" for step in (3, 6)
    ]


def test_two_ranks_share_a_look_and_find_what_one_finds(run_settings, train_in_ranks, logged, overall, tmp_path):
    two = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.precision=32-true"]
    settings = run_settings(*SHORT, *two, looks(3), "trainer.max_steps=4")
    train_in_ranks(settings)
    run, (look,) = settings.output, settings.metrics.values()
    assert [*logged(run, overall)] == [2]
    pipeline = LatentDiffusion.load(run / "checkpoints/step_0000003.ckpt", "ema")
    numbers, _ = look.evaluate(Subject(pipeline, tmp_path / "alone", ["checkpoint=step_0000003"]))
    for name, value in numbers.items():
        assert [*logged(run, name).values()] == [pytest.approx(value, rel=1e-6)], name  # a file has so many digits
    (alone,) = (tmp_path / "alone").rglob("skills.tar")
    shared = run / "evaluation" / alone.relative_to(tmp_path / "alone")
    assert shared.read_bytes() == alone.read_bytes()


def test_what_a_look_needs_is_asked_for_before_the_first_step(trained, tmp_path):
    pytest.importorskip("transformers", reason="GenEval's detector is of transformers: pip install 'microdit[judges]'")
    wanted = r"metrics\.geneval_look is measured while it trains, and could not be: .*"
    option = r"metrics\.geneval_look\.metric\.detector_weights"
    with pytest.raises(SettingsError, match=rf"{wanted}{option}=/nowhere: .*Set {option}=FOLDER.*metrics=none"):
        trained("run", "metrics=geneval_look", "metrics.geneval_look.metric.detector_weights=/nowhere")
    assert not (tmp_path / "run/metrics.csv").exists()
