"""What a run tells: in metrics.csv, in TensorBoard, in Weights & Biases."""

import pytest
import torch
from compositions import plain
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from microdit.cost.peak import matmul_flops_per_second
from microdit.objectives.edm import EDM
from microdit.objectives.objective import LossTerms
from microdit.runs.folder import checkpoints_of, write_config
from microdit.training.callbacks.telemetry import reduced_losses
from microdit.training.run import commit, train

TOLD = [
    *("train/loss", "train/loss_noise_q2", "train/gradient_norm", "train/learning_rate", "train/skipped_steps"),
    *("train/patches_kept", "train/images_per_second", "train/mfu", "train/data_wait_share", "train/peak_memory_gib"),
    *("train/flops", "train/seconds", "train/dollars", "data/images/shapes_synthetic", "validation/loss"),
]


def quiet_train(settings, checkpoint=None):
    return train(settings, Console(quiet=True), checkpoint)


def test_every_number_of_the_issue_is_in_the_file_and_in_tensorboard(run_settings, logged, tmp_path):
    overrides = ["logger=tensorboard", "trainer.dollars_per_device_hour=3600", "trainer.peak_tflops=1"]
    record = quiet_train(run_settings(*overrides, output=tmp_path))
    for name in TOLD:
        assert logged(tmp_path, name), name
        assert record[name] == pytest.approx(list(logged(tmp_path, name).values())[-1]), name
    assert logged(tmp_path, "train/dollars")[7] == pytest.approx(logged(tmp_path, "train/seconds")[7])
    assert logged(tmp_path, "data/images/shapes_synthetic")[7] == 8 * 4
    assert logged(tmp_path, "train/flops")[7] == record["total_flops"]
    speed, mfu = (logged(tmp_path, f"train/{name}")[7] for name in ("images_per_second", "mfu"))
    assert mfu == pytest.approx(speed * record["flops_per_image"] / 1e12)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(TOLD) <= set(board.Tags()["scalars"])
    assert board.Tags()["images"] == ["samples"]


def test_samples_that_stand_in_for_broken_ones_are_counted(run_settings, logged, tmp_path):
    data = f"paths.data_root={tmp_path}/data"
    quiet_train(run_settings(data, output=tmp_path / "whole"))
    assert set(logged(tmp_path / "whole", "data/replaced").values()) == {0}
    (shard,) = (tmp_path / "data/shapes_synthetic/train").glob("latents-*/*.tar")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    skip = ["reading.on_corrupt=skip", "reading.max_corrupt_share=0.5"]
    record = quiet_train(run_settings(data, *skip, output=tmp_path / "broken"))
    counts = list(logged(tmp_path / "broken", "data/replaced").values())
    assert counts == sorted(counts)
    assert record["data/replaced"] == counts[-1] > 0


def test_a_falling_mask_ratio_is_seen_in_patches_and_costs(run_settings, logged, tmp_path):
    record = quiet_train(run_settings("mask_ratio=falling", output=tmp_path))
    kept = logged(tmp_path, "train/patches_kept")
    assert [kept[step] for step in (0, 2, 4, 6)] == [16, 32, 48, 64]
    assert logged(tmp_path, "train/flops")[7] == record["total_flops"]
    assert record["flops_per_image"] == pytest.approx(record["total_flops"] / 32, abs=1)


def test_a_run_ends_by_flops_and_its_schedules_fit(run_settings, logged, tmp_path):
    whole = quiet_train(run_settings("trainer.max_steps=4", output=tmp_path / "steps"))
    budget = f"trainer.max_flops={whole['total_flops']}"
    record = quiet_train(run_settings("trainer.max_steps=1000", budget, output=tmp_path / "flops"))
    assert (record["steps"], record["status"]) == (4, "finished")
    assert record["total_flops"] == whole["total_flops"]
    assert logged(tmp_path / "flops") == logged(tmp_path / "steps")  # with the learning rates of four steps


def test_seconds_that_a_kill_made_worthless_are_counted(run_settings, logged, tmp_path):
    settings = run_settings(output=tmp_path)
    quiet_train(settings)
    spent = logged(tmp_path, "train/seconds")[7]
    resumed = quiet_train(settings, checkpoints_of(tmp_path)[0])
    assert resumed["train/seconds"] > spent


def test_losses_are_sorted_by_the_quarters_of_the_noise():
    objective = EDM(0.5, noise_mean=-1.0, noise_std=2.0)
    sigma = objective.draw(torch.tensor([-2.0, -0.5, 0.1, 0.5, 3.0]).view(-1, 1, 1, 1)).flatten()
    terms = LossTerms(torch.tensor(5.0), torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0]), sigma, torch.zeros(5))
    other = terms._replace(loss=torch.tensor(7.0), extra=torch.full((5,), 0.5))
    found = reduced_losses([terms, other], objective, world_size=1)
    assert found == {
        "train/loss": 6.0,
        "train/loss_noise_q1": 1.0,
        "train/loss_noise_q2": 2.0,
        "train/loss_noise_q3": 4.0,
        "train/loss_noise_q4": 7.0,
        "train/loss_extra": 0.25,
    }


def test_the_peak_is_a_positive_rate_and_draws_nothing():
    state = torch.random.get_rng_state()
    assert matmul_flops_per_second(torch.device("cpu"), torch.float32) > 1e8
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_and_biases_works_offline_with_pictures(run_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    overrides = ["logger=wandb", "trainer.max_steps=3", "logger.wandb.group=sweep_of_masks"]
    config = plain("name=first", *overrides)
    config["metrics"]["dpg"] = {"judge": {"address": "https://somebody:secret@judge.org", "prompts": 7}}
    (tmp_path / "first").mkdir()
    write_config(tmp_path / "first", config, {"masking": "deferred"})
    quiet_train(run_settings(*overrides, output=tmp_path / "first"))
    quiet_train(run_settings("logger=wandb", "trainer.max_steps=3", output=tmp_path / "second"))
    for run in ("first", "second"):  # one each: the first was closed
        (offline,) = (tmp_path / run / "wandb").glob("offline-run-*")
        assert list(offline.glob("*.wandb"))
        assert len(list(offline.glob("files/media/images/*.png"))) == 1
    (kept,) = (tmp_path / "first" / "wandb").glob("offline-run-*/*.wandb")
    sent = kept.read_bytes()
    for told in (b"sweep_of_masks", b"microdit.masking.deferred.Deferred", b"choices.masking", commit().encode()):
        assert told in sent
    assert b"secret" not in sent
    assert b"paths.data_root" not in sent
