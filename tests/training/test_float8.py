"""Large products in eight bits: on the same weights, near the same numbers, refused where they cannot be."""

import pytest
import torch
from denoising import loss_terms
from torch import nn

from microdit.build import SettingsError
from microdit.distributed import hardware
from microdit.distributed.hardware import check_float8, peak_dtype
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws
from microdit.training import float8, module
from microdit.training.float8 import in_float8, is_large
from microdit.training.module import DenoisingTask

LOSS, GRADIENTS = 0.02, 0.25  # relative to float32, on a small random network: numbers have three bits, or two


@pytest.fixture
def torchao():
    return pytest.importorskip("torchao", reason="fp8 is torchao's: pip install 'microdit[fp8]'")


@pytest.fixture
def small_ones_too(monkeypatch):
    monkeypatch.setattr(float8, "SMALLEST", 16)


def test_a_cpu_is_refused_in_a_sentence(run_settings):
    with pytest.raises(SettingsError, match=r"compute capability 8\.9 or more .*, a CPU is none: choose .*bf16-mixed$"):
        run_settings("trainer.precision=fp8")


def test_an_older_card_and_a_missing_library_are_refused_in_a_sentence(monkeypatch):
    with pytest.raises(SettingsError, match=r"8\.9 or more .*, NVIDIA A100 has 8\.0: choose .*bf16-mixed$"):
        check_float8((8, 0), "NVIDIA A100")
    monkeypatch.setattr(hardware, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"torchao's, which is missing: pip install 'microdit\[fp8\]', or choose"):
        check_float8((9, 0), "NVIDIA H100")
    monkeypatch.setattr(hardware, "find_spec", lambda name: name)
    check_float8((8, 9), "NVIDIA L40")


def test_memory_and_mfu_are_those_of_bfloat16(run_settings):
    settings = run_settings("trainer.precision=fp8", "trainer.accelerator=gpu")
    assert settings.trainer.halved
    assert peak_dtype("fp8") == torch.bfloat16


@pytest.mark.parametrize(
    ("layer", "large"),
    [
        (nn.Linear(512, 1024), True),
        (nn.Linear(1024, 512, bias=False), True),
        (nn.Linear(496, 1024), False),
        (nn.Linear(1024, 520), False),
        (nn.Conv2d(512, 512, 1), False),
    ],
)
def test_wide_matrices_whose_sides_are_multiples_of_16_are_large(layer, large):
    assert is_large(layer) == large


def converted_in(network: nn.Module) -> set[str]:
    return {name for name, layer in network.named_modules() if type(layer).__name__ == "Float8Linear"}


def test_the_layers_of_blocks_are_converted_and_share_their_weights(torchao, small_network, small_ones_too):
    network = small_network()
    found = in_float8(network, emulated=True)
    names = converted_in(found)
    assert {"blocks.0.attn.qkv", "blocks.0.cross_attn.kv_linear", "blocks.2.mlp.w1", "patch_mixer.0.attn.proj"} <= names
    assert not [name for name in names if "adaLN" in name or "gate" in name or "embedder" in name or "final" in name]
    assert converted_in(network) == set()
    own, theirs = dict(network.named_parameters()), dict(found.named_parameters())
    assert own.keys() == theirs.keys()
    assert all(own[name] is theirs[name] for name in own)
    assert found.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("images", [2, 3])  # of 3 the tokens are no multiple of 16
def test_loss_and_gradients_are_near_those_of_float32(torchao, small_network, inputs, small_ones_too, images):
    latents, _, captions = inputs(n=images)
    torch.manual_seed(0)
    draws = Draws(torch.randn(images, 1, 1, 1), torch.randn(images, 3, 8, 8), torch.rand(images, 16))
    losses, gradients = [], []
    for network in (small_network(), in_float8(small_network(), emulated=True)):
        terms = loss_terms(network, latents, captions, draws, 0.5)
        terms.loss.backward()
        losses.append(terms.loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None]))
    assert losses[1] == pytest.approx(losses[0], rel=LOSS)
    assert losses[1] != losses[0]
    assert 1e-3 * gradients[0].norm() < (gradients[1] - gradients[0]).norm() < GRADIENTS * gradients[0].norm()


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_trains_in_eight_bits_and_draws_without(
    torchao, small_network, run_settings, small_ones_too, monkeypatch, ema
):
    monkeypatch.setattr(module, "in_float8", lambda network: in_float8(network, emulated=True))
    decay = "null" if ema is None else ema
    gpu = ["trainer.precision=fp8", "trainer.accelerator=gpu", "trainer.compile=false"]
    network = small_network()
    task = DenoisingTask(network, EDM(0.5), run_settings(*gpu, f"resolution_stage.ema_decay={decay}"), max_steps=8)
    assert converted_in(task.network)
    whole = task.whole_network()
    assert converted_in(whole) == converted_in(network) == set()
    with torch.no_grad():
        next(iter(task.network.parameters())).add_(1)
    assert torch.equal(next(iter(network.parameters())), next(iter(task.network.parameters())))
    if ema is None:
        expected = dict(task.network.state_dict())
        assert all(torch.equal(value, expected[name]) for name, value in task.whole_network().state_dict().items())
