"""Weights cast together give, to the last bit, what weights cast one by one give."""

import pytest
import torch
from torch import nn

from microdit.kernels.gpu.casts import Differentiation
from microdit.model.dit import DiT
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws, training_loss


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return (
        torch.randn(2, 3, 8, 8),
        torch.randn(2, 5, 16),
        Draws(torch.randn(2, 1, 1, 1), torch.randn(2, 3, 8, 8), torch.rand(2, 16)),
    )


def loss_by(network: DiT):
    def loss_of(batch, mask_ratio):
        terms = training_loss(
            network,
            *batch,
            token_path=network.token_path,
            objective=EDM(0.9, -0.6, 1.2),
            mask_ratio=mask_ratio,
            patch_size=2,
        )
        return terms.loss, terms.loss.detach()

    return loss_of


def gradients(network: nn.Module) -> list[torch.Tensor | None]:
    found = [parameter.grad for parameter in network.parameters()]
    for parameter in network.parameters():
        parameter.grad = None
    return found


@pytest.mark.parametrize("recomputed", [False, True])
def test_the_same_loss_and_gradients(small_network, batch, recomputed):
    network = small_network()
    if recomputed:
        network.checkpoint_activations()
    step = Differentiation(network, loss_by(network))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        one_by_one = step.run(batch, 0.5)
        expected = gradients(network)
        together = step.run(batch, 0.5)
        actual = gradients(network)
    assert torch.equal(together, one_by_one)
    for (name, _), a, b in zip(network.named_parameters(), actual, expected, strict=True):
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name


def test_only_what_autocast_casts_is_cast(small_network, batch):
    """Norms and what conditions every patch are computed in float32."""
    network = small_network()
    step = Differentiation(network, loss_by(network))
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        step.run(batch, 0.5)
    names = step.cast[torch.bfloat16]
    assert "network.blocks.0.attn.qkv.weight" in names
    assert not [name for name in names if "norm" in name or "adaLN" in name or "t_embedder" in name]


def test_without_autocast_nothing_is_cast(small_network, batch):
    network = small_network()
    step = Differentiation(network, loss_by(network))
    step.run(batch, 0.0)
    assert step.cast == {}
    assert all(gradient is None or gradient.dtype == torch.float32 for gradient in gradients(network))
