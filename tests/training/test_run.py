"""Whole runs: they learn, repeat exactly, resume exactly, and say what went wrong."""

import csv
import dataclasses
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from rich.console import Console
from small_run import SMALL_SCALE

from microdit.build import SettingsError
from microdit.checkpoints.reading import latest_checkpoint, network_weights
from microdit.data.shards.description import MismatchError
from microdit.distributed.ranks import PreemptedError
from microdit.files import read_json
from microdit.pipeline import LatentDiffusion
from microdit.runs.folder import checkpoints_of, places_named
from microdit.training.callbacks.loggers import MetricsFile
from microdit.training.callbacks.samples import SampleGrids
from microdit.training.callbacks.telemetry import Telemetry
from microdit.training.module import NonFiniteLossError
from microdit.training.run import same_run, train


def quiet_train(settings, checkpoint=None):
    return train(settings, Console(quiet=True), checkpoint)


def losses(run) -> dict[int, str]:
    with (run / "metrics.csv").open() as file:
        return {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def test_the_same_seed_gives_identical_losses_and_another_seed_does_not(run_settings, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        quiet_train(run_settings(f"seed={seed}", "trainer.max_steps=3", output=tmp_path / name))
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")
    assert len(losses(tmp_path / "a")) == 3


def test_accumulating_micro_batches_and_reading_threads_change_no_loss(run_settings, tmp_path):
    quiet_train(run_settings("trainer.max_steps=3", "reading.num_workers=0", output=tmp_path / "whole"))
    quiet_train(
        run_settings(
            "trainer.max_steps=3", "trainer.device_batch_size=2", "reading.num_workers=2", output=tmp_path / "parts"
        )
    )
    whole = network_weights(checkpoints_of(tmp_path / "whole")[-1], "raw")
    parts = network_weights(checkpoints_of(tmp_path / "parts")[-1], "raw")
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)


@needs_compiler
def test_a_compiled_run_has_the_losses_of_a_plain_one(run_settings, logged, tmp_path):
    for name in ("true", "false"):
        quiet_train(run_settings(f"trainer.compile={name}", "trainer.max_steps=4", output=tmp_path / name))
    plain, compiled = (list(logged(tmp_path / name, "train/loss").values()) for name in ("false", "true"))
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert len(plain) == 4


def test_a_resumed_run_repeats_the_uninterrupted_one(run_settings, tmp_path):
    undisturbed = quiet_train(run_settings(output=tmp_path / "whole"))
    quiet_train(run_settings(output=tmp_path / "cut"))
    for late in checkpoints_of(tmp_path / "cut")[1:]:
        late.unlink()  # as if it had died after the first checkpoint
    resumed = quiet_train(run_settings(output=tmp_path / "cut"), latest_checkpoint(tmp_path / "cut"))
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert resumed["validation/loss"] == undisturbed["validation/loss"]
    for weights in ("raw", "ema"):
        a, b = (network_weights(checkpoints_of(tmp_path / n)[-1], weights) for n in ("whole", "cut"))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_what_a_checkpoint_says_of_the_schedule_replaces_none_of_its_parts(run_settings, tmp_path):
    quiet_train(run_settings("trainer.max_steps=4"))
    path = checkpoints_of(tmp_path / "run")[-1]
    content = torch.load(path, weights_only=True)
    content["lr_schedulers"][0] |= {"get_lr": 1, "optimizer": 2, "base_lrs": "x"}
    torch.save(content, path)
    assert quiet_train(run_settings("trainer.max_steps=5"), path)["steps"] == 5


@pytest.mark.parametrize(("interval", "validated"), [(3, [2, 5, 7]), (4, [3, 7]), (50, [7])])
def test_a_run_ends_with_a_validation_whatever_the_interval(run_settings, logged, tmp_path, interval, validated):
    record = quiet_train(run_settings(f"trainer.validate_every_n_steps={interval}", output=tmp_path))
    found = logged(tmp_path, "validation/loss")
    assert list(found) == validated
    assert (record["status"], record["steps"]) == ("finished", 8)
    assert record["validation/loss"] == pytest.approx(found[7])


def test_a_signal_while_the_last_pictures_are_drawn_is_not_lost(run_settings, tmp_path, monkeypatch):
    draw = SampleGrids.draw

    def draw_and_be_asked(*given):
        draw(*given)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(SampleGrids, "draw", draw_and_be_asked)
    with pytest.raises(PreemptedError, match="stopped at step 8"):
        quiet_train(run_settings(output=tmp_path))
    monkeypatch.undo()
    resumed = quiet_train(run_settings(output=tmp_path), latest_checkpoint(tmp_path))
    assert (resumed["status"], resumed["steps"], len(losses(tmp_path))) == ("finished", 8, 8)


def test_what_a_run_was_stopped_before_a_resumed_one_makes_first(run_settings, logged, tmp_path, monkeypatch):
    def settings(name):
        both = ["trainer.validate_every_n_steps=4", "callbacks.samples.every_n_steps=4"]
        return run_settings(*both, output=tmp_path / name)

    quiet_train(settings("whole"))
    tell = Telemetry.on_train_batch_end

    def tell_and_be_asked(self, trainer, *given):
        tell(self, trainer, *given)
        if trainer.global_step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Telemetry, "on_train_batch_end", tell_and_be_asked)
    with pytest.raises(PreemptedError, match="stopped at step 4"):
        quiet_train(settings("cut"))
    monkeypatch.undo()
    assert "validation/loss" not in (tmp_path / "cut" / "metrics.csv").read_text()
    quiet_train(settings("cut"), latest_checkpoint(tmp_path / "cut"))
    assert list(logged(tmp_path / "cut", "validation/loss")) == [3, 7]
    for name in ("train/loss", "validation/loss"):
        assert logged(tmp_path / "cut", name) == logged(tmp_path / "whole", name)
    whole, cut = (tmp_path / name / "samples" / "step_0000004.png" for name in ("whole", "cut"))
    assert cut.read_bytes() == whole.read_bytes()


def out_of_reach(*given, **named):
    raise FileNotFoundError("the weights are out of reach")


def test_without_the_encoders_weights_there_are_no_pictures_and_a_warning_before_the_first_step(
    run_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(LatentDiffusion, "load_encoders", out_of_reach)
    console = Console(file=(tmp_path / "said.txt").open("w"), record=True, width=200)
    record = train(run_settings(output=tmp_path / "run"), console)
    assert record["status"] == "finished"
    assert "warning: there will be no sample grids: the weights are out of reach" in console.export_text()
    assert not list((tmp_path / "run" / "samples").glob("*"))


def test_a_metric_that_could_not_be_measured_at_the_end_is_refused_at_the_start(run_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(LatentDiffusion, "load_encoders", out_of_reach)
    settings = run_settings("metrics=shapes", output=tmp_path / "run")
    with pytest.raises(SettingsError, match=r"is measured when training ends, and could not be: .*metrics=none"):
        quiet_train(settings)
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_a_disk_without_room_for_the_checkpoints_is_told_at_the_start(run_settings, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("microdit.training.run.shutil.disk_usage", lambda path: usage)
    console = Console(file=(tmp_path / "said.txt").open("w"), record=True, width=300)
    train(run_settings("trainer.max_steps=1", output=tmp_path / "run"), console)
    assert "1e-06 GB free: make room, or lower trainer.keep_checkpoints" in console.export_text()


def test_a_finished_run_leaves_what_the_readme_promises(run_settings, tmp_path):
    record = quiet_train(run_settings(output=tmp_path / "run"))
    run = tmp_path / "run"
    assert read_json(run / "result.json", "") == record
    assert record["status"] == "finished"
    assert record["images"] == 8 * 4
    assert record["patches"] == 64
    assert record["patches_kept"] == 16
    assert record["total_flops"] == record["flops_per_image"] * 32
    assert all(not isinstance(value, dict | list) for value in record.values())
    assert (run / "samples" / "step_0000008.png").exists()
    assert [path.name for path in checkpoints_of(run)] == [
        "step_0000003.ckpt",
        "step_0000006.ckpt",
        "step_0000008.ckpt",
    ]
    images = LatentDiffusion.load(run).generate(["a red circle"], num_inference_steps=2, seed=0)
    assert images.shape == (1, 3, 16, 16)


def test_only_the_newest_checkpoints_are_kept(run_settings, tmp_path):
    quiet_train(run_settings("trainer.keep_checkpoints=1", output=tmp_path / "run"))
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["step_0000008.ckpt"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))


def test_the_average_lags_behind_the_weights(run_settings, tmp_path):
    quiet_train(run_settings(output=tmp_path / "run"))
    newest = checkpoints_of(tmp_path / "run")[-1]
    raw, ema = network_weights(newest, "raw"), network_weights(newest, "ema")
    assert any(not torch.equal(raw[key], ema[key]) for key in raw)


def test_the_road_through_the_embedded_autoencoder_runs(run_settings, tmp_path):
    latents = ["+scale=latents", *SMALL_SCALE, "trainer.max_steps=2"]
    data = [f"paths.data_root={tmp_path / 'data'}", "resolution_stage.resolution_px=64", "model.head_dim=16"]
    settings = run_settings(*latents, *data)
    choices = {"autoencoder": "shapes_kl", "text_encoder": "words"}
    quiet_train(dataclasses.replace(settings, choices=choices))
    pipeline = LatentDiffusion.load(tmp_path / "run")
    assert (pipeline.dit.in_channels, pipeline.dit.input_size, pipeline.dit.patch_size) == (5, 8, 1)
    assert pipeline.generate(["a red circle"], seed=0).shape == (1, 3, 64, 64)
    assert places_named(pipeline.settings, [tmp_path / "run"]) == []  # nothing that is read comes from elsewhere


def test_training_lowers_the_validation_loss(run_settings, tmp_path):
    def validation(steps, name):
        # At noise levels where a picture's own pixels help: what hides under more of it, 24 scenes cannot teach.
        noise = ("resolution_stage.noise_mean=-0.6", "resolution_stage.noise_std=1.2")
        length = (f"trainer.max_steps={steps}", f"trainer.validate_every_n_steps={steps}")
        return quiet_train(run_settings(*noise, *length, output=tmp_path / name))["validation/loss"]

    assert validation(150, "long") < 0.9 * validation(1, "short")


@pytest.mark.parametrize("masking", ["masking=none", "masking=naive", "masking=deferred"])
def test_every_masking_trains(run_settings, tmp_path, masking):
    ratio = "mask_ratio=none" if masking == "masking=none" else "mask_ratio=p75"
    record = quiet_train(run_settings(masking, ratio, "trainer.max_steps=2", output=tmp_path / "run"))
    assert record["train/loss"] > 0


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(run_settings, tmp_path):
    settings = run_settings("resolution_stage.learning_rate=1e30", output=tmp_path / "run")
    with pytest.raises(NonFiniteLossError, match="at step"):
        quiet_train(settings)


def test_a_mask_ratio_without_masking_is_refused_before_anything_runs(run_settings):
    with pytest.raises(SettingsError, match="drops no patches"):
        run_settings("masking=none", "mask_ratio=p75")


def test_guidance_that_the_masking_method_does_not_train_for_is_refused(run_settings):
    with pytest.raises(SettingsError, match="Deferred has no cheap pass to guide away from"):
        run_settings("sampling.guidance=path_drop")
    assert run_settings("sampling.guidance=path_drop", "masking=sprint").sampling.guidance == "path_drop"
    with pytest.raises(SettingsError, match=r"trained with masking\.path_drop above 0"):
        run_settings("sampling.guidance=path_drop", "masking=sprint", "masking.path_drop=0")


def test_missing_data_names_the_command_that_makes_it(run_settings, tmp_path):
    elsewhere = f"data_mix.sources=[{{name: photos, folder: {tmp_path}/photos, weight: size}}]"
    settings = run_settings(elsewhere, "data_mix.kinds=null", output=tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"python prepare\.py"):
        quiet_train(settings)


def test_data_of_another_caption_width_is_refused(run_settings, tmp_path):
    quiet_train(run_settings("trainer.max_steps=1", output=tmp_path / "first"))
    settings = run_settings("text_encoder.channels=32", output=tmp_path / "run")
    settings = dataclasses.replace(settings, data_mix=dataclasses.replace(settings.data_mix, embedded=None))
    with pytest.raises(MismatchError, match="captions of"):
        quiet_train(settings)


def test_a_finished_run_that_is_resumed_keeps_what_it_had_found(run_settings, tmp_path):
    settings = run_settings(output=tmp_path)
    record = quiet_train(settings)
    again = quiet_train(settings, latest_checkpoint(tmp_path))
    kept = [name for name in record if name.startswith(("train/", "validation/"))]
    assert {"train/loss", "train/images_per_second", "validation/loss"} <= set(kept)
    assert {name: again[name] for name in kept} == pytest.approx({name: record[name] for name in kept})


def test_no_column_of_metrics_takes_the_place_of_what_a_run_says_of_itself(run_settings, tmp_path):
    quiet_train(run_settings("trainer.max_steps=2"))
    log = MetricsFile(tmp_path / "run" / "metrics.csv")
    log.log_metrics({"status": 5.0, "steps": 7.0, "images": 1.0, "seconds": 2.0, "mine": 3.0}, step=1)
    record = quiet_train(run_settings("trainer.max_steps=2"), latest_checkpoint(tmp_path / "run"))
    assert (record["status"], record["steps"], record["images"]) == ("finished", 2, 8)
    assert record["mine"] == 3.0
    assert [*record][:2] == ["status", "steps"]


def test_the_loss_on_the_terminal_is_that_of_the_whole_batch(run_settings, tmp_path):
    console = Console(file=(tmp_path / "said.txt").open("w"), record=True, width=200)
    record = train(run_settings("trainer.device_batch_size=1", output=tmp_path / "run"), console)
    assert f"step 8/8  loss {record['train/loss']:.4f} " in console.export_text()


WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger"}


def begun(run: Path, day: int) -> str:
    """The id of a run of Weights & Biases that is begun for a folder, and kept there as its logger keeps it."""
    name = same_run(WANDB, run)["version"]
    (run / "wandb" / f"offline-run-2026010{day}_000000-{name}").mkdir(parents=True)
    return name


def test_a_resumed_run_goes_on_with_the_curves_of_its_first_part(tmp_path):
    first = begun(tmp_path / "run", 1)
    assert begun(tmp_path / "run", 2) == first
    assert begun(tmp_path / "another", 1) != first


def test_no_folder_of_somebody_else_says_which_of_ones_own_runs_is_joined(tmp_path):
    for name in ("abc12345", begun(tmp_path / "theirs", 1)):
        (tmp_path / "run" / "wandb" / f"run-20260101_000000-{name}").mkdir(parents=True)
        assert same_run(WANDB, tmp_path / "run")["version"] != name


@pytest.mark.parametrize("logger", [{**WANDB, "version": "mine"}, {"_target_": "lightning.pytorch.loggers.CSVLogger"}])
def test_a_run_that_is_named_and_other_loggers_are_left_alone(tmp_path, logger):
    assert same_run(logger, tmp_path) == {}
