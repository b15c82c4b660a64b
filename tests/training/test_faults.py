"""What may go wrong in training, and what is lost by it: nothing."""

import resource
import time

import pytest
import torch
from rich.console import Console

from microdit.build import SettingsError
from microdit.checkpoints.reading import CheckpointError, network_weights, read_checkpoint
from microdit.commands.train import launch
from microdit.runs.folder import checkpoints_of
from microdit.training.callbacks.checkpoints import StepCheckpoints
from microdit.training.callbacks.samples import SampleGrids
from microdit.training.data import LatentData
from microdit.training.module import NonFiniteLossError
from microdit.training.run import train

RUN = ["callbacks.samples.every_n_steps=100", "trainer.max_steps=8"]


def poison(monkeypatch, steps):
    """Makes the latents of these steps infinite, as a broken file that nobody caught would."""
    whole = LatentData.transfer_batch_to_device

    def poisoned(self, batch, device, dataloader_idx):
        if self.trainer.training and self.trainer.global_step in steps:
            batch = {**batch, "latents": torch.full_like(batch["latents"], float("inf"))}
        return whole(self, batch, device, dataloader_idx)

    monkeypatch.setattr(LatentData, "transfer_batch_to_device", poisoned)


def test_a_step_that_is_not_finite_is_skipped_and_leaves_the_weights_alone(run_settings, logged, tmp_path, monkeypatch):
    poison(monkeypatch, {3, 4})
    settings = run_settings(*RUN, "trainer.checkpoint_every_n_steps=1", "trainer.keep_checkpoints=9", output=tmp_path)
    record = train(settings, Console(quiet=True))
    assert (record["status"], record["train/skipped_steps"]) == ("finished", 2)
    assert list(logged(tmp_path, "train/skipped_steps").values()) == [0, 0, 0, 1, 2, 2, 2, 2]
    names = [path.name for path in checkpoints_of(tmp_path)]
    assert "step_0000004.ckpt" not in names  # nothing is saved while steps are skipped
    assert "step_0000005.ckpt" not in names
    assert "step_0000006.ckpt" in names
    assert all(torch.isfinite(tensor).all() for tensor in network_weights(checkpoints_of(tmp_path)[-1], "raw").values())


def test_skipped_steps_change_no_weight(run_settings, tmp_path, monkeypatch):
    poison(monkeypatch, {1})
    before = {}

    def remember(self, trainer, task, *_):
        before[trainer.global_step] = {name: value.clone() for name, value in task.network.state_dict().items()}

    monkeypatch.setattr(StepCheckpoints, "on_train_batch_end", remember)
    train(run_settings(*RUN, "trainer.max_steps=3", output=tmp_path), Console(quiet=True))
    assert all(torch.equal(before[1][name], before[2][name]) for name in before[1])
    assert any(not torch.equal(before[2][name], before[3][name]) for name in before[1])


def test_too_many_skipped_steps_stop_the_run_and_the_last_good_checkpoint_stays(run_settings, tmp_path, monkeypatch):
    poison(monkeypatch, set(range(3, 100)))
    settings = run_settings(*RUN, "trainer.max_skipped_steps=2", "trainer.checkpoint_every_n_steps=1", output=tmp_path)
    with pytest.raises(NonFiniteLossError, match="in 3 steps in a row, the last at step 5"):
        train(settings, Console(quiet=True))
    assert checkpoints_of(tmp_path)[-1].name == "step_0000003.ckpt"
    assert network_weights(checkpoints_of(tmp_path)[-1], "raw")


@pytest.fixture
def full_disk():
    """No file may grow beyond the size it is called with, which is what a full disk looks like from inside."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_costs_no_checkpoint_that_was_there(run_settings, tmp_path, monkeypatch, full_disk):
    save = StepCheckpoints.save

    def saved(self, trainer, last=False):
        full_disk(100_000 if trainer.global_step in (4, 6) else resource.RLIM_INFINITY)
        save(self, trainer, last)
        full_disk(resource.RLIM_INFINITY)

    monkeypatch.setattr(StepCheckpoints, "save", saved)
    console = Console(record=True, quiet=False, file=(tmp_path / "said.txt").open("w"), width=500)
    settings = run_settings(*RUN, "trainer.checkpoint_every_n_steps=2", output=tmp_path / "run")
    assert train(settings, console)["status"] == "finished"
    assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["step_0000002.ckpt", "step_0000008.ckpt"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".*"))
    said = console.export_text()
    assert "the checkpoint of step 4 could not be written" in said
    assert "the newest one is" in said
    for path in checkpoints_of(tmp_path / "run"):
        read_checkpoint(path)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="fills the disk of other processes")
def test_a_full_disk_under_fsdp_leaves_the_checkpoint_before_and_no_rubbish(run_settings, start_ranks, tmp_path):
    two = ("trainer.devices=2", "trainer.strategy=fsdp", "trainer.max_steps=20", "trainer.checkpoint_every_n_steps=5")
    ranks = start_ranks(run_settings(*RUN, *two, output=tmp_path))
    while not checkpoints_of(tmp_path):
        assert all(rank.is_alive() for rank in ranks)
        time.sleep(0.002)
    for rank in ranks:
        resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    ranks[0].join(120)
    for rank in ranks:
        rank.kill()
    assert ranks[0].exitcode == 1  # the last checkpoint could not be written
    read_checkpoint(checkpoints_of(tmp_path)[0])
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(run_settings, tmp_path, monkeypatch, full_disk):
    save = StepCheckpoints.save

    def saved(self, trainer, last=False):
        full_disk(100_000 if trainer.global_step == 8 else resource.RLIM_INFINITY)
        try:
            save(self, trainer, last)
        finally:
            full_disk(resource.RLIM_INFINITY)

    monkeypatch.setattr(StepCheckpoints, "save", saved)
    settings = run_settings(*RUN, "trainer.checkpoint_every_n_steps=4", output=tmp_path)
    with pytest.raises(CheckpointError, match=r"step 8 could not be written .* newest one is .*step_0000004\.ckpt"):
        train(settings, Console(quiet=True))
    read_checkpoint(checkpoints_of(tmp_path)[-1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's thread
def test_a_disk_without_any_room_ends_no_training_and_the_error_names_the_checkpoint(
    run_settings, tmp_path, monkeypatch, full_disk
):
    begin = SampleGrids.on_train_batch_end

    def on_train_batch_end(self, trainer, *rest):  # pictures, rows, the last checkpoint, result.json: nothing goes
        full_disk(0 if trainer.global_step >= 5 else resource.RLIM_INFINITY)
        begin(self, trainer, *rest)

    monkeypatch.setattr(SampleGrids, "on_train_batch_end", on_train_batch_end)
    settings = run_settings(
        *RUN, "logger=tensorboard", "callbacks.samples.every_n_steps=6", "trainer.checkpoint_every_n_steps=4"
    )
    with pytest.raises(
        CheckpointError, match=r"step 8 could not be written .* GB free; .*step_0000004\.ckpt. Make room"
    ):
        launch(settings.config, {"autoencoder": "pixel", "text_encoder": "words"}, tmp_path, Console(quiet=True))
    full_disk(resource.RLIM_INFINITY)
    read_checkpoint(checkpoints_of(tmp_path)[-1])
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_a_run_that_goes_on_no_longer_says_that_it_finished(run_settings, tmp_path, monkeypatch):
    settings = run_settings(*RUN, output=tmp_path)
    assert train(settings, Console(quiet=True))["status"] == "finished"
    poison(monkeypatch, set(range(8, 100)))
    longer = run_settings(*RUN, "trainer.max_steps=20", output=tmp_path)
    with pytest.raises(NonFiniteLossError):  # as a kill would: whoever ends it, nobody writes what came out
        train(longer, Console(quiet=True), checkpoints_of(tmp_path)[-1])
    assert not (tmp_path / "result.json").exists()


def test_what_a_killed_run_had_begun_to_write_is_removed(run_settings, tmp_path):
    left = [tmp_path / "checkpoints" / name for name in (".step_0000003.ckpt.partial", ".step_0000001.ckpt.discarded")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").touch()
    train(run_settings(*RUN, "trainer.max_steps=1", output=tmp_path), Console(quiet=True))
    assert not any(folder.exists() for folder in left)


def test_more_gpus_than_there_are_is_an_error_before_anything_starts(run_settings, tmp_path):
    asked = torch.cuda.device_count() + 2
    settings = run_settings(
        "trainer.accelerator=gpu", f"trainer.devices={asked}", f"resolution_stage.global_batch_size={asked}"
    )
    with pytest.raises(
        SettingsError, match=f"trainer.devices={asked} GPUs are asked for, torch finds {asked - 2} here"
    ):
        launch(settings.config, {"autoencoder": "pixel", "text_encoder": "words"}, tmp_path, Console(quiet=True))
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_offered(run_settings, tmp_path):
    settings = run_settings(*RUN, output=tmp_path)
    choices = {"autoencoder": "pixel", "text_encoder": "words"}
    launch(settings.config, choices, tmp_path, Console(quiet=True))
    *_, good, bad = checkpoints_of(tmp_path)
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    again = {**settings.config, "resume": str(tmp_path)}
    with pytest.raises(CheckpointError) as refused:
        launch(again, choices, tmp_path, Console(quiet=True))
    assert str(bad) in str(refused.value)
    assert f"resume={good}" in str(refused.value)
    record = launch({**again, "resume": str(good)}, choices, tmp_path, Console(quiet=True))
    assert record["status"] == "finished"
    assert (tmp_path / "checkpoints" / f"set_aside_{bad.name}").exists()
    read_checkpoint(checkpoints_of(tmp_path)[-1])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            lambda content: content["state_dict"].pop("network.mask_token"),
            r"ckpt does not fit .*\n  missing network\.ma",
        ),
        (lambda content: content["optimizer_states"][0]["state"][0].clear(), None),
        (lambda content: content["optimizer_states"][0]["state"][0].popitem(), "of the optimizer does not fit"),
        (lambda content: content["optimizer_states"][0].update(param_groups=[5]), r"param_groups\.0 must be settings"),
    ],
)
def test_a_checkpoint_that_does_not_fit_its_run_is_told_in_a_sentence(run_settings, tmp_path, changed, told):
    quiet = Console(quiet=True)
    train(run_settings("trainer.max_steps=1", output=tmp_path), quiet)
    newest = checkpoints_of(tmp_path)[-1]
    content = torch.load(newest, weights_only=True)
    changed(content)
    torch.save(content, newest)
    again = run_settings("trainer.max_steps=2", output=tmp_path)
    if told is None:
        train(again, quiet, newest)
    else:
        with pytest.raises(CheckpointError, match=told):
            train(again, quiet, newest)


@pytest.mark.parametrize("override", ["resolution_stage.ema_decay=null", "optimizer=adamw_short"])
def test_a_change_that_the_checkpoints_do_not_fit_is_refused_and_leaves_the_run_as_it_was(
    run_settings, tmp_path, override
):
    choices = {"autoencoder": "pixel", "text_encoder": "words"}
    launch(run_settings(*RUN, "trainer.max_steps=1").config, choices, tmp_path, Console(quiet=True))
    before = (tmp_path / "config.yaml").read_text()
    changed = {**run_settings(*RUN, "trainer.max_steps=2", override).config, "resume": str(tmp_path)}
    with pytest.raises(SettingsError, match=r"it cannot become .*init_from="):
        launch(changed, choices, tmp_path, Console(quiet=True))
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_folder_with_checkpoints_is_gone_on_with(run_settings, tmp_path, logged):
    settings = run_settings(*RUN, output=tmp_path)
    choices = {"autoencoder": "pixel", "text_encoder": "words"}
    launch(settings.config, choices, tmp_path, Console(quiet=True))
    losses = logged(tmp_path)
    checkpoints_of(tmp_path)[-1].unlink()
    launch(settings.config, choices, tmp_path, Console(quiet=True))  # as SLURM does with a job that is queued again
    assert logged(tmp_path) == losses


def test_a_resumed_run_learns_at_the_rate_it_is_told_now_and_decays_as_told(run_settings, tmp_path, logged):
    """What `NonFiniteLossError` advises: a checkpoint holds the optimizer's settings too, and they must not win."""
    choices = {"autoencoder": "pixel", "text_encoder": "words"}
    whole = ["trainer.max_steps=6", "trainer.checkpoint_every_n_steps=3"]
    launch(run_settings(*RUN, *whole).config, choices, tmp_path, Console(quiet=True))
    before = logged(tmp_path, "train/learning_rate")
    checkpoints_of(tmp_path)[-1].unlink()
    told = ["resolution_stage.learning_rate=7.5e-4", "optimizer.weight_decay=0.03"]
    config = {**run_settings(*RUN, *whole, *told).config, "resume": str(tmp_path)}
    launch(config, choices, tmp_path, Console(quiet=True))
    after = logged(tmp_path, "train/learning_rate")
    assert [after[step] for step in (3, 4, 5)] == pytest.approx([before[step] / 2 for step in (3, 4, 5)])
    groups = read_checkpoint(checkpoints_of(tmp_path)[-1])["optimizer_states"][0]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.03}
