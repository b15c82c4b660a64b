"""Runs on a GPU: they learn, resume, and their checkpoints are those of a CPU."""

import copy

import pytest
import torch
from denoising import loss_terms
from golden import assert_close
from rich.console import Console
from torch.distributed.device_mesh import init_device_mesh

from microdit.checkpoints.reading import latest_checkpoint, network_weights
from microdit.distributed.hardware import LEAST_CAPABILITY
from microdit.distributed.sharding import shard, whole_tensor
from microdit.objectives.objective import Draws
from microdit.pipeline import LatentDiffusion
from microdit.training import float8
from microdit.training.draws import TRAINING, draw_chance
from microdit.training.run import train

pytestmark = pytest.mark.gpu
GPU = ["trainer.accelerator=gpu"]
BF16 = [*GPU, "trainer.precision=bf16-mixed"]
SHORT = ["trainer.max_steps=6", "trainer.checkpoint_every_n_steps=3", "trainer.compile=false"]


def run(settings, checkpoint=None):
    return train(settings, Console(quiet=True), checkpoint)


@pytest.mark.parametrize("compile", [False, True], ids=["plain", "compiled"])
def test_a_run_learns_saves_and_draws(run_settings, logged, tmp_path, compile):
    record = run(run_settings(*BF16, f"trainer.compile={str(compile).lower()}", "trainer.max_steps=30"))
    assert record["status"] == "finished"
    losses = logged(tmp_path / "run")
    assert sum(list(losses.values())[-8:]) < sum(list(losses.values())[:8])
    assert (tmp_path / "run" / "samples").is_dir()


def test_float32_losses_are_those_of_a_cpu(run_settings, logged, tmp_path):
    run(run_settings(*SHORT, output=tmp_path / "cpu"))
    run(run_settings(*SHORT, *GPU, output=tmp_path / "gpu"))
    assert logged(tmp_path / "gpu") == pytest.approx(logged(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["trainer.device_batch_size=2"],
        ["mask_ratio=falling"],
        ["resolution_stage.ema_decay=null"],
        ["masking=sprint", "masking.path_drop=0.5", "model.depth=3"],
        ["representation=repa", "representation.hidden_ratio=0.75", "representation.until=0.5"],
        ["representation=irepa", "masking=tread", "model.depth=3"],
    ],
)
def test_a_step_launched_at_once_is_the_step_launched_kernel_by_kernel(run_settings, logged, tmp_path, more):
    for name in ("false", "true"):
        compiled = ["trainer.max_steps=6", "trainer.compile=true", f"trainer.cuda_graphs={name}"]
        run(run_settings(*GPU, *compiled, *more, output=tmp_path / name))
    assert logged(tmp_path / "true") == pytest.approx(logged(tmp_path / "false"), rel=1e-4)
    assert logged(tmp_path / "true", "validation/loss") == pytest.approx(
        logged(tmp_path / "false", "validation/loss"), rel=1e-4
    )


def test_checkpoints_go_from_one_kind_of_device_to_the_other(run_settings, logged, tmp_path):
    run(run_settings(*SHORT, output=tmp_path / "cpu"))
    for first, then in (([], GPU), (GPU, [])):
        folder = tmp_path / f"then_{len(then)}"
        run(run_settings(*SHORT, "trainer.max_steps=3", *first, output=folder))
        run(run_settings(*SHORT, *then, output=folder), latest_checkpoint(folder))
        assert logged(folder) == pytest.approx(logged(tmp_path / "cpu"), rel=1e-3)
    expected = network_weights(latest_checkpoint(tmp_path / "cpu"), "raw")
    for name, value in network_weights(latest_checkpoint(folder), "raw").items():
        assert value.device.type == "cpu"
        torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=5e-4)  # six steps of Muon magnify rounding


def test_the_same_pictures_as_on_a_cpu(run_settings, tmp_path):
    run(run_settings(*SHORT, *GPU))
    pipeline = LatentDiffusion.load(tmp_path / "run")
    settings = {"seed": 3, "num_inference_steps": 6, "precision": "fp32"}
    on_cpu = pipeline.generate(["a red circle", "two blue squares"], **settings)
    on_gpu = copy.deepcopy(pipeline).cuda().generate(["a red circle", "two blue squares"], **settings)
    assert_close(on_gpu.cpu(), on_cpu, 1e-3)


def test_what_is_drawn_for_a_sample_does_not_know_the_device():
    chance = draw_chance(0, TRAINING, [3, 5, 8], (4, 8, 8), 2, 0.1)
    for drawn in chance.draws:
        assert torch.equal(drawn.pin_memory().cuda(non_blocking=True).cpu(), drawn)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_sharded_step_on_one_gpu_is_the_step_of_the_whole(small_network, inputs, tmp_path, bf16):
    torch.distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        whole = small_network().cuda()
        parts = copy.deepcopy(whole)
        shard(parts, init_device_mesh("cuda", (1,)), bf16)
        latents, _, captions = (x.cuda() for x in inputs(n=4))
        draws = Draws(*(x.cuda() for x in (torch.randn(4, 1, 1, 1), torch.randn(4, 3, 8, 8), torch.rand(4, 16))))
        losses = []
        for network in (whole, parts):
            with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
                loss = loss_terms(network, latents, captions, draws, 0.5).loss
            loss.backward()
            losses.append(loss.detach())
        assert_close(losses[1], losses[0], 2e-2 if bf16 else 1e-5)
        for part, one in zip(parts.parameters(), whole.parameters(), strict=True):
            if one.grad is not None and one.grad.norm() > 1e-3:
                assert_close(whole_tensor(part.grad), one.grad, 0.3 if bf16 else 1e-4)
    finally:
        torch.distributed.destroy_process_group()


def test_a_run_in_eight_bits_learns_as_in_bfloat16(run_settings, logged, tmp_path, monkeypatch):
    pytest.importorskip("torchao", reason="fp8 is torchao's: pip install 'microdit[fp8]'")
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        pytest.skip("this card does not multiply in float8")
    monkeypatch.setattr(float8, "SMALLEST", 16)
    for name in ("fp8", "bf16-mixed"):
        run(run_settings(*GPU, f"trainer.precision={name}", "trainer.max_steps=20", output=tmp_path / name))
    assert logged(tmp_path / "fp8") == pytest.approx(logged(tmp_path / "bf16-mixed"), rel=0.05)
    assert logged(tmp_path / "fp8") != logged(tmp_path / "bf16-mixed")
