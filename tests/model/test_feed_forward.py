"""Experts that choose their patches, against the formula with one-hot dispatch."""

import pytest
import torch
import torch.nn.functional as F

from microdit.model.feed_forward import ExpertChoice


def plain_formula(layer: ExpertChoice, x: torch.Tensor, k: int) -> torch.Tensor:
    """Dispatch and combine as one-hot einsums: the definition (Zhou et al. 2022), at its full cost."""
    probabilities = (x @ layer.gate.weight.T).softmax(-1)
    chosen, patches = torch.topk(probabilities.transpose(1, 2), k)  # [n, e, k]
    dispatch = F.one_hot(patches, x.shape[1]).to(x.dtype)  # [n, e, k, t]
    hidden = F.gelu(torch.einsum("nekt,ntd,edh->nekh", dispatch, x, layer.w1))
    outputs = torch.einsum("nekh,ehd->nekd", hidden, layer.w2)
    return torch.einsum("nekt,nek,nekd->ntd", dispatch, chosen, outputs)


def make(capacity: float = 2.0, experts: int = 4, dim: int = 16) -> ExpertChoice:
    torch.manual_seed(0)
    layer = ExpertChoice(dim, 2.0, 8, experts, capacity)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return layer


def run(function, layer: ExpertChoice, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, then the gradients with respect to the input and each weight."""
    x = x.clone().requires_grad_()
    output = function(x)
    target = torch.linspace(-1, 1, output.numel()).view_as(output)
    gradients = torch.autograd.grad((output * target).sum(), [x, *layer.parameters()], allow_unused=True)
    return [output.detach(), *(torch.zeros(()) if g is None else g for g in gradients)]


@pytest.mark.parametrize(("tokens", "capacity", "k"), [(16, 2.0, 8), (7, 2.0, 3), (9, 0.5, 1), (16, 4.0, 16)])
def test_outputs_and_gradients_are_those_of_the_formula(tokens, capacity, k):
    layer, x = make(capacity), torch.randn(3, tokens, 16)
    ours = run(layer, layer, x)
    plain = run(lambda x: plain_formula(layer, x, k), layer, x)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b.expand_as(a), atol=1e-5, rtol=1e-5)


def test_with_too_few_patches_for_an_expert_nothing_is_added():
    layer, x = make(capacity=1.0), torch.randn(2, 3, 16)  # k = int(1 * 3 / 4) = 0
    output, *gradients = run(layer, layer, x)
    assert torch.equal(output, torch.zeros_like(x))
    assert all((g == 0).all() for g in gradients)


def test_a_capacity_above_the_number_of_experts_takes_all_patches_once():
    layer, x = make(capacity=100.0), torch.randn(2, 5, 16)
    torch.testing.assert_close(layer(x), plain_formula(layer, x, 5))


def test_all_experts_may_choose_the_same_patch_and_their_outputs_add_up():
    layer = make(capacity=1.0, experts=4)
    layer.gate.weight.data.zero_()  # every expert wants every patch alike, so all choose the same
    x = torch.randn(2, 4, 16)
    output = layer(x)
    assert ((output != 0).any(-1).sum(1) == 1).all()
    ours, plain = run(layer, layer, x), run(lambda x: plain_formula(layer, x, 1), layer, x)
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_every_expert_has_the_same_work_whatever_the_gate_says():
    layer, x = make(), torch.randn(2, 16, 16).abs()
    layer.gate.weight[0] = 1.0
    assert layer.gate(x).softmax(-1)[..., 0].min() > 0.5, "every patch prefers the first expert"
    weights = layer.w2.clone()
    for expert in range(4):
        layer.w2.zero_()
        layer.w2[expert] = weights[expert]
        assert (layer(x) != 0).any(-1).sum(1).tolist() == [8, 8]


def test_the_probability_keeps_its_gradient():
    layer = make()
    layer(torch.randn(2, 16, 16)).square().sum().backward()
    assert layer.gate.weight.grad.abs().sum() > 0


def test_twice_the_same_input_gives_the_same_bits():
    layer, x = make(), torch.randn(3, 16, 16)
    for a, b in zip(run(layer, layer, x), run(layer, layer, x), strict=True):
        assert torch.equal(a, b)


def test_the_hidden_width_is_not_cut_to_two_thirds():
    assert ExpertChoice(32, 2.5, 24, 4, 2.0).w1.shape == (4, 32, 96)  # int(32 * 2.5) = 80, rounded up to 24s
