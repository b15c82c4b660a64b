"""However a run is cut among processes, it is the same run."""

import shutil

import pytest
import torch
from evaluating import evaluate_as_rank
from rich.console import Console

from microdit.checkpoints.reading import checkpoint_metadata, network_weights, read_checkpoint
from microdit.files import read_json
from microdit.runs.folder import checkpoints_of
from microdit.training.run import train

STEPS = 20
ALL = [
    "optimizer=adamw_short",
    f"trainer.max_steps={STEPS}",
    "resolution_stage.global_batch_size=8",
    "data_mix.embedded.counts={train: 24, validation: 5}",  # 5 does not divide by 2 ranks
    "trainer.validation_batch_size=2",
    "trainer.validate_every_n_steps=10",
    "trainer.checkpoint_every_n_steps=5",
    "trainer.keep_checkpoints=4",
    "callbacks.samples.every_n_steps=20",
]
HOW = {
    "one": [],
    "accumulated": ["trainer.device_batch_size=4"],
    "ddp": ["trainer.devices=2"],
    "ddp_accumulated": ["trainer.devices=2", "trainer.device_batch_size=2"],
    "fsdp": ["trainer.devices=2", "trainer.strategy=fsdp"],
    "fsdp_kept": ["trainer.devices=2", "trainer.strategy=fsdp", "trainer.reshard_after_forward=false"],
    "hsdp": ["trainer.nodes=2", "trainer.devices=2", "trainer.strategy=fsdp", "trainer.sharding=hybrid"],
    "fsdp_accumulated": ["trainer.devices=2", "trainer.strategy=fsdp", "trainer.device_batch_size=2"],
}


@pytest.fixture(scope="module")
def train_as(train_in_ranks):
    def start(settings, checkpoint=None):
        if settings.trainer.world_size == 1:
            train(settings, Console(quiet=True), checkpoint)
        else:
            train_in_ranks(settings, checkpoint)

    return start


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def settings_of(run_settings, runs):
    data = f"paths.data_root={runs}/data"
    return lambda how, output, *overrides: run_settings(*ALL, *HOW[how], data, *overrides, output=output)


@pytest.fixture
def finished(runs, settings_of, train_as):
    """finished("ddp"): the folder of a run to the end, made once and not to be changed."""

    def folder(how):
        if not (runs / how / "result.json").exists():
            train_as(settings_of(how, runs / how))
        return runs / how

    return folder


def same_weights(a, b, tolerance=1e-5):
    for weights in ("raw", "ema"):
        expected, found = network_weights(a, weights), network_weights(b, weights)
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("how", [name for name in HOW if name != "one"])
def test_every_division_of_the_work_gives_the_same_losses_and_weights(finished, logged, how):
    one, divided = finished("one"), finished(how)
    for name in ("train/loss", "train/gradient_norm", "train/loss_noise_q3", "validation/loss"):
        expected, found = logged(one, name), logged(divided, name)
        relative = 1e-5 if name == "train/gradient_norm" else 0.0  # norms of hundreds are not exact to 1e-5
        assert found == pytest.approx(expected, abs=1e-5, rel=relative), name
    assert len(logged(divided)) == STEPS
    same_weights(checkpoints_of(one)[-1], checkpoints_of(divided)[-1])
    assert (divided / "samples" / "step_0000020.png").exists()


def test_a_checkpoint_goes_on_under_every_strategy(finished, settings_of, train_as, logged, tmp_path):
    expected, cut = logged(finished("one")), tmp_path / "run"
    shutil.copytree(finished("fsdp"), cut)
    for how, step in (("ddp_accumulated", 5), ("one", 10), ("fsdp", 15), ("one", 15)):
        train_as(settings_of(how, cut), cut / "checkpoints" / f"step_{step:07d}.ckpt")
        found = logged(cut)
        assert found.keys() == expected.keys()
        assert max(abs(found[s] - expected[s]) for s in expected) < 1e-5, how
        same_weights(checkpoints_of(finished("one"))[-1], checkpoints_of(cut)[-1])


def test_a_checkpoint_goes_on_between_hsdp_and_every_other_strategy(finished, settings_of, train_as, logged, tmp_path):
    expected, cut = logged(finished("one")), tmp_path / "run"
    shutil.copytree(finished("fsdp"), cut)
    # From a checkpoint of fsdp, of ddp; then fsdp, one process and hsdp itself from one of hsdp.
    for how, step in (("hsdp", 5), ("ddp", 5), ("hsdp", 10), ("fsdp", 15), ("one", 15), ("hsdp", 15)):
        train_as(settings_of(how, cut), cut / "checkpoints" / f"step_{step:07d}.ckpt")
        found = logged(cut)
        assert found.keys() == expected.keys()
        assert max(abs(found[s] - expected[s]) for s in expected) < 1e-5, how
        same_weights(checkpoints_of(finished("one"))[-1], checkpoints_of(cut)[-1])
    assert checkpoint_metadata(cut / "checkpoints" / "step_0000015.ckpt")["world_size"] == 4


def test_a_checkpoint_says_what_it_is_of(finished):
    for how, world_size in (("one", 1), ("fsdp", 2)):
        said = checkpoint_metadata(finished(how) / "checkpoints" / "step_0000010.ckpt")
        assert (said["step"], said["samples_seen"], said["data"]) == (10, 80, {"next_position": 80})
        assert said["world_size"] == world_size
        assert said["config"]["model"]["dim"] == 32
        assert set(said["versions"]) == {"python", "microdit", "torch", "lightning", "numpy"}


def test_a_sharded_checkpoint_reads_like_a_file(finished):
    sharded, single = (read_checkpoint(finished(how) / "checkpoints" / "step_0000010.ckpt") for how in ("fsdp", "one"))
    assert sharded.keys() == single.keys()
    assert sharded["state_dict"].keys() == single["state_dict"].keys()
    states = [content["optimizer_states"][0]["state"] for content in (sharded, single)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, states[1][number][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_bfloat16_is_the_same_sharded_or_not(settings_of, train_as, logged, tmp_path, how):
    for run in ("one", how):
        train_as(settings_of(run, tmp_path / run, "trainer.precision=bf16-mixed", "trainer.max_steps=6"))
    expected, found = logged(tmp_path / "one"), logged(tmp_path / how)
    assert max(abs(found[step] - expected[step]) for step in expected) < 2e-3
    dtypes = {tensor.dtype for tensor in network_weights(checkpoints_of(tmp_path / how)[-1], "raw").values()}
    assert dtypes == {torch.float32}


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_muon_takes_the_same_steps_on_whole_matrices_and_on_parts_of_them(settings_of, train_as, logged, tmp_path, how):
    muon = ["optimizer=muon", "trainer.max_steps=10"]
    for run in ("one", how):
        train_as(settings_of(run, tmp_path / run, *muon))
    expected, found = logged(tmp_path / "one"), logged(tmp_path / how)
    assert found == pytest.approx(expected, abs=1e-5)
    same_weights(checkpoints_of(tmp_path / "one")[-1], checkpoints_of(tmp_path / how)[-1])
    shutil.copytree(tmp_path / how, tmp_path / "cut")
    train_as(settings_of(how, tmp_path / "cut", *muon), tmp_path / "cut" / "checkpoints" / "step_0000005.ckpt")
    assert logged(tmp_path / "cut") == pytest.approx(expected, abs=1e-5)


def test_compressed_gradients_train_nearly_alike(finished, settings_of, train_as, logged, tmp_path):
    train_as(settings_of("ddp", tmp_path, "trainer.gradient_compression=bf16"))
    exact, found = logged(finished("one")), logged(tmp_path)
    differences = [abs(found[step] - exact[step]) for step in exact]
    assert 1e-6 < max(differences) < 2e-2


MEASURED = [
    "metrics=[compositional,shapes_frechet,shapes_loss]",
    "metrics.compositional.prompts_per_skill=12",
    "metrics.compositional.colour_prompts=12",
    "metrics.shapes_frechet.count=12",
    "metrics.shapes_frechet.reference_count=260",
    "metrics.shapes_loss.count=70",
]


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_what_the_ranks_measure_together_at_the_end_is_what_one_process_finds_in_the_checkpoint(
    settings_of, train_as, run_as_ranks, tmp_path, how
):
    settings = settings_of(how, tmp_path / how, "trainer.max_steps=4", *MEASURED)
    train_as(settings)
    together = read_json(tmp_path / how / "result.json", "")
    shutil.rmtree(tmp_path / how / "evaluation")
    arguments = {"checkpoint": str(tmp_path / how), "pictures": None, "weights": ["ema"]}
    arguments |= {"metrics": settings.config["metrics"]}
    arguments |= {"sampling": {}, "batch_size": 64, "device": "cpu"}
    assert run_as_ranks(evaluate_as_rank, 1, arguments) == [0]
    alone = read_json(tmp_path / how / "result.json", "")
    measured = [name for name in together if name.startswith(("compositional/", "frechet", "denoising_loss/"))]
    assert len(measured) == 8 + 2 + 9
    assert {name: together[name] for name in measured} == {name: alone[name] for name in measured}
