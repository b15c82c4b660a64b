"""Evaluating a checkpoint or kept pictures: which numbers join result.json, and under which names."""

import csv
import io
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from chat_server import sees_what_is_bright, served, shades_elsewhere
from judging import bright_dogs, pictures_of_dogs
from PIL import Image
from rich.console import Console

from microdit.build import SettingsError
from microdit.checkpoints.reading import CheckpointError, read_checkpoint
from microdit.checkpoints.sharded import write_closing_files
from microdit.commands.evaluate import Devices, evaluate, evaluate_in_ranks
from microdit.distributed import ranks as ranks_of_training
from microdit.evaluation.pictures import PicturesError
from microdit.files import DamagedFileError, read_json

METRICS = {
    "compositional": {
        "_target_": "microdit.evaluation.shapes.compositional.ShapesCompositional",
        "domains": ["synthetic"],
        "prompts_per_skill": 2,
        "colour_prompts": 2,
        "sampling": {"num_inference_steps": 2, "guidance_scale": 4.0, "seed": 0},
    },
    "shapes_loss": {
        "_target_": "microdit.evaluation.shapes.loss.ShapesDenoisingLoss",
        "domains": ["synthetic"],
        "count": 8,
        "noise_levels": [0.5, 2.0],
        "seed": 0,
    },
}
COMPOSITIONAL = {"compositional": METRICS["compositional"]}


@pytest.fixture
def run(pipeline, tmp_path) -> Path:
    """A run's folder with one checkpoint whose raw and averaged weights differ, and a record."""
    folder = tmp_path / "run"
    pipeline.save(folder)
    (folder / "weights.safetensors").unlink()
    save_checkpoint(pipeline, folder, step=5)
    (folder / "result.json").write_text('{"status": "finished", "validation/loss": 0.5}')
    return folder


def save_checkpoint(pipeline, folder: Path, step: int) -> Path:
    state = pipeline.dit.state_dict()
    both = {f"ema.{key}": value for key, value in state.items()}
    both |= {f"network.{key}": value + 0.05 if "weight" in key else value for key, value in state.items()}
    path = folder / "checkpoints" / f"step_{step:07d}.ckpt"
    path.parent.mkdir(exist_ok=True)
    torch.save({"state_dict": both}, path)
    return path


def measured(
    run: Path | None, pictures: Path | None = None, metrics=METRICS, weights=("ema",), console=None, **sampling
) -> dict:
    given = {"checkpoint": run and str(run), "pictures": pictures and str(pictures), "weights": list(weights)}
    console = console or Console(quiet=True)
    return evaluate(**given, metrics=metrics, sampling=sampling, batch_size=8, device="cpu", console=console)


def record(run: Path) -> dict:
    return read_json(run / "result.json", "")


def test_numbers_join_what_training_left(run):
    numbers = measured(run)
    assert {"compositional/overall", "denoising_loss/mean", "denoising_loss/sigma_0.5"} <= numbers.keys()
    assert record(run) == {"status": "finished", "validation/loss": 0.5, **numbers}


def test_raw_weights_and_averaged_ones_do_not_mix(run):
    numbers = measured(run, weights=("ema", "raw"))
    assert numbers["denoising_loss/mean"] != numbers["denoising_loss/mean@raw"]
    assert record(run).items() >= numbers.items()
    assert (run / "evaluation/skills.tar").is_file()
    assert (run / "evaluation/raw/skills.tar").is_file()


def test_the_name_says_the_sampling_where_it_is_not_the_metrics_own(run):
    numbers = measured(run, guidance_scale=1.0, num_inference_steps=2, sampler=None)
    assert "compositional/overall@guidance_scale=1" in numbers
    assert "compositional/overall" not in numbers
    assert "denoising_loss/mean" in numbers  # has no sampling


def test_of_several_guidance_scales_each_is_measured_and_there_are_curves(run):
    numbers = measured(run, weights=("ema", "raw"), guidance_scale=[4.0, 2, 2.0])
    single = measured(run, weights=("ema",), guidance_scale=2.0)
    assert numbers.items() >= single.items()
    assert {f"compositional/overall{end}" for end in ("", "@guidance_scale=2", "@raw", "@raw,guidance_scale=2")} <= set(
        numbers
    )  # 4 is the metric's own
    assert not any(name.startswith("denoising_loss") and "guidance" in name for name in numbers)
    with (run / "evaluation/guidance.csv").open() as file:
        table = list(csv.DictReader(file))
    assert not any(row["number"].startswith("denoising_loss") for row in table)
    rows = [row for row in table if row["number"] == "compositional/colors@raw"]
    assert [(float(row["guidance_scale"]), float(row["value"])) for row in rows] == [
        (4, numbers["compositional/colors@raw"]),
        (2, numbers["compositional/colors@raw,guidance_scale=2"]),
    ]
    assert Image.open(run / "evaluation/guidance.png").width > 400


def with_count(count: int) -> dict:
    return {"shapes_loss": {**METRICS["shapes_loss"], "count": count}}


def test_the_name_says_where_a_metric_is_not_set_as_it_was_when_training_ended(run):
    (run / "config.yaml").write_text(json.dumps({"metrics": with_count(4)}))
    assert "denoising_loss/mean@count=8" in measured(run, metrics=with_count(8))
    assert "denoising_loss/mean" in measured(run, metrics=with_count(4))
    assert "denoising_loss/mean@raw,count=8" in measured(run, metrics=with_count(8), weights=("raw",))


def test_numbers_of_a_metric_that_training_did_not_measure_are_compared_with_its_first_evaluation(run):
    (run / "config.yaml").write_text("seed: 1\n")
    first = measured(run, metrics=with_count(4))
    assert "denoising_loss/mean@count=8" in measured(run, metrics=with_count(8))
    assert record(run)["denoising_loss/mean"] == first["denoising_loss/mean"]


def test_a_damaged_config_of_the_run_is_told_before_anything_is_measured(run):
    (run / "config.yaml").write_text("metrics: [")
    before = record(run)
    with pytest.raises(SettingsError, match=r"config\.yaml .*cannot be read"):
        measured(run)
    assert record(run) == before


def test_a_record_that_cannot_be_added_to_is_told_before_anything_is_measured(run, monkeypatch):
    (run / "result.json").write_text(json.dumps({"denoising_loss/mean": [1.0]}))
    monkeypatch.setattr("microdit.commands.evaluate.measure", None)
    with pytest.raises(DamagedFileError, match=r"result\.json: denoising_loss/mean must be .* got \[1\.0\]"):
        measured(run)


@pytest.mark.parametrize("old", ["many", None, True])
def test_an_old_value_that_is_no_number_is_replaced_and_told(run, old):
    (run / "result.json").write_text(json.dumps({"denoising_loss/mean": old}))
    console = Console(record=True, quiet=False, width=200, file=io.StringIO())
    numbers = measured(run, metrics=with_count(4), console=console)
    assert record(run)["denoising_loss/mean"] == numbers["denoising_loss/mean"]
    assert "denoising_loss/mean was " in console.export_text()


def test_a_folder_with_one_set_of_weights_has_no_raw_ones(pipeline, tmp_path):
    pipeline.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match="holds one set of weights"):
        measured(tmp_path / "saved", weights=("raw",))


def test_an_older_checkpoint_is_named(run, pipeline):
    older = run / "checkpoints/step_0000005.ckpt"
    newest = save_checkpoint(pipeline, run, step=9)
    assert "denoising_loss/mean@checkpoint=step_0000005" in measured(older)
    assert "denoising_loss/mean" in measured(newest)


def test_a_run_that_was_saved_in_parts_has_the_numbers_of_one_saved_whole(run, pipeline):
    (whole,) = (run / "checkpoints").iterdir()
    numbers = measured(run, weights=("ema", "raw"))
    tensors = {f"state_dict.{key}": value for key, value in read_checkpoint(whole)["state_dict"].items()}
    parts = whole.with_name("parts")
    dcp.save(tensors, storage_writer=dcp.FileSystemWriter(parts), no_dist=True)
    write_closing_files(parts, {"parameter_names": [], "optimizer_groups": []}, {"step": 5})
    whole.unlink()
    parts.rename(whole)
    for tar in run.glob("evaluation/**/*.tar"):
        tar.unlink()  # or pictures would not be drawn again
    assert measured(run, weights=("ema", "raw")) == numbers
    save_checkpoint(pipeline, run, step=9)
    older = measured(whole, metrics={"shapes_loss": METRICS["shapes_loss"]})
    assert older["denoising_loss/mean@checkpoint=step_0000005"] == numbers["denoising_loss/mean"]


@pytest.mark.parametrize("left", [None, "__0_0.distcp"])
def test_a_checkpoint_that_is_not_there_or_not_whole_is_told_with_those_that_are(run, left):
    missing = run / "checkpoints/step_0000007.ckpt"
    if left is not None:
        missing.mkdir()
        (missing / left).touch()
    with pytest.raises(CheckpointError, match=r"no checkpoint .*step_0000007\.ckpt; that run has: step_0000005\.ckpt"):
        measured(missing)


def test_pictures_alone_give_the_same_numbers_again(run):
    drawn = measured(run, metrics=COMPOSITIONAL, weights=("raw",), guidance_scale=2.0)
    for checkpoint in (run / "checkpoints").iterdir():
        checkpoint.unlink()
    before = record(run)
    assert measured(None, run / "evaluation/raw+guidance_scale_2", COMPOSITIONAL) == drawn
    assert record(run) == before


def test_a_metric_that_needs_the_network_says_so_when_there_are_only_pictures(run):
    measured(run, metrics=COMPOSITIONAL)
    with pytest.raises(PicturesError, match="give checkpoint=RUN"):
        measured(None, run / "evaluation", {"shapes_loss": METRICS["shapes_loss"]})


def test_what_a_metric_found_stays_when_the_next_one_fails(run, monkeypatch):
    def fail(*given):
        raise ValueError("imaginary")

    monkeypatch.setattr("microdit.evaluation.shapes.loss.ShapesDenoisingLoss.evaluate", fail)
    with pytest.raises(ValueError, match="imaginary"):
        measured(run, metrics={**COMPOSITIONAL, "shapes_loss": METRICS["shapes_loss"]})
    assert "compositional/overall" in record(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either checkpoint=RUN or pictures"),
        ({"metrics": {}}, "either checkpoint=RUN or pictures"),
        ({"run": Path("r"), "pictures": Path("p")}, "either checkpoint=RUN or pictures"),
        ({"run": Path("r"), "metrics": {}}, "metrics=none measures nothing"),
        ({"run": Path("r"), "weights": ()}, "weights is empty"),
        ({"run": Path("r"), "guidence_scale": 2.0}, "did you mean 'guidance_scale'"),
        ({"run": Path("r"), "guidance_scale": []}, r"guidance_scale is empty: choose such as \[1,1\.5,2\]"),
        (
            {"run": Path("r"), "metrics": {"shapes_loss": METRICS["shapes_loss"]}, "guidance_scale": [1, 2]},
            "draws pict",
        ),
        ({"run": Path("r"), "guidance_scale": [1.0, "two"]}, r"sampling\.guidance_scale must be a number"),
        ({"pictures": Path("p"), "guidance_scale": 2.0}, "drawn already"),
        ({"pictures": Path("p")}, "p is no folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(arguments, message):
    with pytest.raises(SettingsError, match=message):
        measured(**{"run": None, **arguments})


def test_pictures_outside_a_run_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="lies in no run"):
        measured(None, tmp_path)


@pytest.mark.parametrize("way", ["strange/evaluation", "strange/evaluation/../evaluation", "linked"])
def test_a_link_leads_into_no_other_run(run, tmp_path, way):
    measured(run, metrics=COMPOSITIONAL)
    before = record(run)
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "pipeline.json").write_text((run / "pipeline.json").read_text())
    (tmp_path / "strange" / "evaluation").symlink_to(run / "evaluation")
    (tmp_path / "linked").symlink_to(run / "evaluation")
    with pytest.raises(SettingsError, match=r"is a link to .*evaluation, out of|lies in no run .*name it by its place"):
        measured(None, tmp_path / way, COMPOSITIONAL)
    assert record(run) == before


def test_a_run_that_is_reached_by_a_link_is_that_run(run, tmp_path):
    measured(run, metrics=COMPOSITIONAL)
    (tmp_path / "by_link").symlink_to(run)
    assert measured(None, tmp_path / "by_link" / "evaluation", COMPOSITIONAL)


def test_a_file_that_is_no_checkpoint_of_a_run_is_refused(tmp_path):
    stray = tmp_path / "sweep" / "multirun.yaml"
    stray.parent.mkdir()
    stray.write_text("seed: 1\n")
    with pytest.raises(CheckpointError, match=r"multirun\.yaml is no checkpoint of a run"):
        measured(stray)


# Pictures made elsewhere.

GENEVAL = {
    "geneval": {
        "_target_": "microdit.evaluation.geneval.metric.GenEval",
        "prompts_file": None,
        "prompts_per_tag": None,
        "pictures_per_prompt": 4,
        "detector_weights": "of somebody",
        "clip_weights": "of somebody",
        "sampling": {"seed": 0},
    }
}


@pytest.fixture
def judged(monkeypatch) -> list[int]:
    """How bright the pictures were that a judge without networks was asked for, in the place of the real one."""
    asked: list[int] = []
    monkeypatch.setattr("microdit.evaluation.geneval.metric.read_judge", lambda *given: bright_dogs(asked.append))
    return asked


@pytest.fixture
def elsewhere(tmp_path) -> Path:
    """A folder a picture, as GenEval has them; no run."""
    for number, (_, sample, pixels) in enumerate(pictures_of_dogs(4)):
        samples = tmp_path / f"elsewhere/{number:05d}/samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(sample))
        Image.fromarray(pixels).save(samples / "0000.png")
    return tmp_path / "elsewhere"


def test_pictures_made_elsewhere_are_judged_and_have_a_record_of_their_own(elsewhere, judged):
    numbers = measured(None, elsewhere, GENEVAL)
    assert numbers == {"geneval/single_object": 0.5, "geneval/overall": 0.5, "geneval/pictures": 4}
    assert record(elsewhere).items() >= numbers.items()
    assert (elsewhere / "evaluation/geneval.png").is_file()
    assert len((elsewhere / "evaluation/geneval/results.jsonl").read_text().splitlines()) == 4
    assert measured(None, elsewhere, GENEVAL) == numbers
    assert len(judged) == 4


def vqa_score(tmp_path: Path, address: str) -> dict:
    (tmp_path / "prompts.txt").write_text("a grey square\n")
    judge = {"weights": "a-judge", "address": address}
    given = {"prompts_file": str(tmp_path / "prompts.txt"), "prompts_per_category": None, "judge": judge}
    target = "microdit.evaluation.judging.vqa_score.VqaScore"
    return {"vqa_score": {"_target_": target, **given, "sampling": {"num_inference_steps": 2, "seed": 0}}}


def test_a_judge_at_an_address_judges_a_run_and_where_it_is_reached_is_no_difference(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MICRODIT_JUDGE_KEY", "sk-secret-1234")
    with served(sees_what_is_bright) as there:
        numbers = measured(run, metrics=vqa_score(tmp_path, there.address))
    assert {"vqa_score", "vqa_score/pictures"} <= numbers.keys()
    assert there.requests[-1].headers["Authorization"] == "Bearer sk-secret-1234"
    with served(sees_what_is_bright) as elsewhere:
        assert measured(run, metrics=vqa_score(tmp_path, elsewhere.address)) == numbers
    assert not elsewhere.requests
    kept = [path for path in run.rglob("*") if path.is_file()]
    assert run / "evaluation/history.jsonl" in kept
    assert not any(b"sk-secret-1234" in path.read_bytes() for path in kept)


def test_a_judge_judges_pictures_made_elsewhere_by_the_prompts_beside_them(tmp_path):
    folder = shades_elsewhere(tmp_path / "elsewhere", ["a grey square"], [[204]])
    with served(sees_what_is_bright) as there:
        numbers = measured(None, folder, vqa_score(tmp_path, there.address))
    assert numbers["vqa_score"] == pytest.approx(0.8)
    assert record(folder).items() >= numbers.items()


def test_other_metrics_do_not_judge_pictures_made_elsewhere(elsewhere):
    with pytest.raises(PicturesError, match=r"made elsewhere.* metrics=geneval"):
        measured(None, elsewhere, COMPOSITIONAL)
    with pytest.raises(PicturesError, match="give checkpoint=RUN"):
        measured(None, elsewhere, {"shapes_loss": METRICS["shapes_loss"]})


def test_nothing_is_written_through_a_link_among_pictures_made_elsewhere(elsewhere, judged, tmp_path):
    (tmp_path / "other").mkdir()
    (elsewhere / "evaluation").symlink_to(tmp_path / "other")
    with pytest.raises(SettingsError, match="is a link"):
        measured(None, elsewhere, GENEVAL)
    assert not list((tmp_path / "other").iterdir())


def test_a_folder_of_no_pictures_at_all_is_told_what_it_could_hold(tmp_path):
    with pytest.raises(SettingsError, match=r"lies in no run .* and holds no pictures made elsewhere \(00000/metadata"):
        measured(None, tmp_path, GENEVAL)


@pytest.mark.parametrize(
    ("ends", "left"),
    [
        (None, 0),
        (KeyboardInterrupt(), 0),
        (ranks_of_training.PreemptedError("stopped"), 0),
        (ranks_of_training.RanksError("rank 1 failed"), 1),  # whose logs say more
    ],
)
def test_several_processes_leave_a_folder_behind_only_where_it_says_why_one_failed(ends, left, tmp_path, monkeypatch):
    def run_ranks(job, logs, machine, console) -> None:
        assert read_json(Path(job.arguments[0]), "")["device"] == "cpu"
        logs.mkdir()
        if ends is not None:
            raise ends

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ranks_of_training, "run_ranks", run_ranks)
    expected = SystemExit if isinstance(ends, ranks_of_training.PreemptedError) else type(ends)
    with pytest.raises(expected) if ends else nullcontext():
        evaluate_in_ranks({"device": "cpu"}, Devices(2))
    assert len(list(tmp_path.glob("microdit-evaluation-*"))) == left
