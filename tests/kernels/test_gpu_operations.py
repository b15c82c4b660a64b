"""The kernels for GPUs compute what the formulas say, forward and backward: by Triton's interpreter where no GPU is."""

import copy
import os

import pytest
import torch
from torch import nn
from torch.func import functional_call

from microdit.kernels.gpu import operations
from microdit.kernels.gpu.operations import gpu_operations
from microdit.model.feed_forward import ExpertChoice, GatherPatches, SumOverExperts, places_among_chosen
from microdit.model.operations import FORMULAS, use_operations

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FUSED = gpu_operations()


@pytest.fixture(autouse=True)
def _seed():
    assert torch.cuda.is_available() or os.environ["TRITON_INTERPRET"] == "1"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("highest")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE)


def assert_alike(formula, fused, *inputs: torch.Tensor, tolerance: float = 1e-5) -> None:
    """The same results, and the same gradients of all inputs."""

    def results(operation):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        out = operation(*leaves)
        outs = out if isinstance(out, tuple) else (out,)
        torch.manual_seed(1)
        torch.autograd.backward(outs, [torch.randn_like(each) for each in outs])
        return [*outs, *(x.grad for x in leaves)]

    for actual, expected in zip(results(fused), results(formula), strict=True):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        assert (actual - expected).norm() <= tolerance * max(expected.norm(), expected.numel() ** 0.5)


SHAPES = [(2, 5, 24), (1, 1, 8), (3, 17, 40)]  # samples, tokens, width: no power of two among them


@pytest.fixture
def norm():
    def made(width: int) -> nn.LayerNorm:
        layer = nn.LayerNorm(width, eps=1e-6, bias=False, device=DEVICE)
        nn.init.normal_(layer.weight)
        return layer

    return made


def with_weight(norm, function):
    """`function` with the norm's weight as its last input, so that its gradient is compared as well."""

    def called(*inputs):
        replaced = copy.copy(norm)
        replaced._parameters = {"weight": inputs[-1], "bias": None}
        return function(replaced, *inputs[:-1])

    return called


@pytest.mark.parametrize("shape", SHAPES)
def test_modulated_norm(norm, shape):
    n, _, d = shape
    layer = norm(d)
    inputs = randn(*shape), randn(n, 2 * d), layer.weight

    def of(each):
        return with_weight(layer, lambda norm, x, both: each.modulated_norm(x, norm, *both.chunk(2, dim=-1)))

    assert_alike(of(FORMULAS), of(FUSED), *inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_add_gated_then_norm(norm, shape):
    layer = norm(shape[-1])
    inputs = randn(*shape), randn(shape[0], shape[-1]), randn(*shape), layer.weight

    def of(each):
        return with_weight(layer, lambda norm, x, gate, y: each.add_gated_then_norm(x, gate, y, norm))

    assert_alike(of(FORMULAS), of(FUSED), *inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_add_then_modulated_norm(norm, shape):
    n, _, d = shape
    layer = norm(d)
    inputs = randn(*shape), randn(*shape), randn(n, 2 * d), layer.weight

    def of(each):
        return with_weight(
            layer, lambda norm, x, y, both: each.add_then_modulated_norm(x, y, norm, *both.chunk(2, dim=-1))
        )

    assert_alike(of(FORMULAS), of(FUSED), *inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_normalised_goes_on_beside_it(norm, shape):
    n, _, d = shape
    layer = norm(d)
    inputs = randn(*shape), randn(n, 2 * d), layer.weight

    def of(each):
        return with_weight(
            layer, lambda norm, x, both: each.add_then_modulated_norm(x, None, norm, *both.chunk(2, dim=-1))
        )

    assert_alike(of(FORMULAS), of(FUSED), *inputs)


@pytest.mark.parametrize("shape", SHAPES)
def test_add_gated(shape):
    assert_alike(FORMULAS.add_gated, FUSED.add_gated, randn(*shape), randn(shape[0], shape[-1]), randn(*shape))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_gated_product(shape, bias):
    layers = nn.ModuleList(nn.Linear(shape[-1], 12, bias=bias, device=DEVICE) for _ in range(2))
    names = [name for name, _ in layers.named_parameters()]

    def of(operation):
        both = nn.Module()
        both.forward = lambda x: operation(x, *layers)
        both.layers = layers
        return lambda x, *weights: functional_call(
            both, {f"layers.{n}": w for n, w in zip(names, weights, strict=True)}, (x,)
        )

    tolerance = 1e-4 if DEVICE == "cuda" else 1e-5
    inputs = randn(*shape), *(parameter.detach() for parameter in layers.parameters())
    assert_alike(of(FORMULAS.gated_product), of(FUSED.gated_product), *inputs, tolerance=tolerance)


@pytest.mark.parametrize("lengths", [None, (5, 3), (1, 7)])
def test_normalised_attention(lengths):
    """With itself, or of so many patches to so many caption tokens."""
    sizes = {"head_dim": 8, "norm_eps": 1e-6}
    inputs = (randn(2, 6, 72),) if lengths is None else (randn(2, lengths[0], 24), randn(2, lengths[1], 48))
    assert_alike(
        lambda *packed: FORMULAS.normalised_attention(*packed, **sizes),
        lambda *packed: FUSED.normalised_attention(*packed, **sizes),
        *inputs,
    )


@pytest.mark.parametrize("lengths", [(64,), (7,), (20, 77), (70, 77), (5, 128), (130, 3)])
def test_attention_to_no_more_keys_than_one_program_holds(monkeypatch, lengths):
    """In float32 here, to compare exactly; it is used for types of half the size."""
    monkeypatch.setattr(operations, "HALVES", (torch.float32,))
    sizes = {"head_dim": 16, "norm_eps": 1e-6}
    tolerance = 5e-3 if DEVICE == "cuda" else 1e-5  # matrix units round what they multiply
    inputs = (randn(2, *lengths, 96),) if len(lengths) == 1 else (randn(2, lengths[0], 32), randn(2, lengths[1], 64))
    assert operations.is_attention_to_few(*inputs, head_dim=16)
    assert_alike(
        lambda *packed: FORMULAS.normalised_attention(*packed, **sizes),
        lambda *packed: FUSED.normalised_attention(*packed, **sizes),
        *inputs,
        tolerance=tolerance,
    )


def test_wide_rows_and_other_devices_go_through_the_formulas(monkeypatch, norm):
    monkeypatch.setattr(operations, "WIDEST_ROW", 8)
    layer, x = norm(16), randn(1, 2, 16)
    assert torch.equal(
        FUSED.modulated_norm(x, layer, x[:, 0], x[:, 1]), FORMULAS.modulated_norm(x, layer, x[:, 0], x[:, 1])
    )
    assert FUSED.gated_product(
        torch.empty(1, 2, 3, device="meta"), *(nn.Linear(3, 4, device="meta") for _ in "ab")
    ).is_meta


@pytest.mark.parametrize("each", [FORMULAS, FUSED], ids=["formulas", "kernels"])
def test_experts_summed_in_a_fixed_order_are_those_summed_as_they_come(each):
    experts = ExpertChoice(16, 2.0, 8, num_experts=4, capacity=2.0).to(DEVICE)
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)

    def in_fixed_order(x):
        n, t, d = x.shape
        k = 2 * t // 4
        chosen, patches = experts.gate(x).softmax(dim=-1).transpose(1, 2).topk(k, dim=-1)
        rows = (patches + t * torch.arange(n, device=x.device)[:, None, None]).transpose(0, 1).flatten()
        slots = places_among_chosen(patches, t)
        outputs = experts.experts(GatherPatches.apply(x, rows, slots, each).view(4, n * k, d))
        return SumOverExperts.apply(outputs.view(4, n, k, d), chosen, rows, slots, each)

    def as_they_come(x):
        n, t, _ = x.shape
        chosen, patches = experts.gate(x).softmax(dim=-1).transpose(1, 2).topk(2 * t // 4, dim=-1)
        sums = torch.zeros_like(x)
        for e in range(4):
            for i in range(n):
                made = experts.experts(x[i, patches[i, e]].expand(4, -1, -1))[e] * chosen[i, e, :, None]
                sums = sums.index_put((torch.full_like(patches[i, e], i), patches[i, e]), made, accumulate=True)
        return sums

    assert_alike(as_they_come, in_fixed_order, randn(3, 12, 16))


def test_the_network_is_the_same(small_network, inputs):
    network = small_network().to(DEVICE)
    fused = copy.deepcopy(network)
    use_operations(fused, gpu_operations())
    latents, labels, captions = (x.to(DEVICE) for x in inputs(n=2))
    results = []
    for each in (network, fused):
        out = each(latents, labels, captions)
        out.square().sum().backward()
        results.append([out, *(p.grad for p in each.parameters())])
    for expected, actual in zip(*results, strict=True):
        assert (actual - expected).norm() <= 1e-4 * max(expected.norm(), 1e-3)


def test_keys_that_are_not_present_are_not_attended_to(monkeypatch):
    """By what few keys would go through otherwise too, which knows no masks."""
    monkeypatch.setattr(operations, "HALVES", (torch.float32,))
    sizes = {"head_dim": 16, "norm_eps": 1e-6}
    present = torch.tensor([[True, True, False, False, False], [True, True, True, True, False]], device=DEVICE)
    inputs = randn(2, 7, 32), randn(2, 5, 64)
    assert_alike(
        lambda *packed: FORMULAS.normalised_attention(*packed, **sizes, present=present),
        lambda *packed: FUSED.normalised_attention(*packed, **sizes, present=present),
        *inputs,
        tolerance=5e-3 if DEVICE == "cuda" else 1e-5,
    )
    everywhere = FUSED.normalised_attention(*inputs, **sizes)
    assert not torch.allclose(FUSED.normalised_attention(*inputs, **sizes, present=present), everywhere, atol=1e-2)
