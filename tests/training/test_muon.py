"""Muon: steps of even size in all directions, for matrices and stacks of them; AdamW for the rest."""

import pytest
import torch
from torch import nn

from microdit.model.sizes import MicroDiT_Tiny_2
from microdit.training.muon import MuonWithAdamW, orthogonalised, weight_matrices
from microdit.training.optimizers import make_optimizer
from microdit.training.settings import OptimizerSettings

MUON = OptimizerSettings(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, matrix_step=10.0, matrix_momentum=0.95)
ADAMW = OptimizerSettings(beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0, matrix_step=None, matrix_momentum=0.95)


def small_network():
    torch.manual_seed(0)
    size = {"dim": 32, "depth": 3, "head_dim": 16, "multiple_of": 16, "patch_mixer_depth": 2, "patch_mixer_dim": 16}
    return MicroDiT_Tiny_2(input_size=8, caption_channels=8, num_experts=2, **size)


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8), (3, 8, 24)])
def test_all_directions_of_a_matrix_become_about_equally_long_and_stay_directions(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalised(matrix)
    lengths = torch.linalg.svdvals(result)
    assert lengths.min() > 0.6
    assert lengths.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    along = torch.diagonal(u.mT @ result @ vh.mT, dim1=-2, dim2=-1)
    torch.testing.assert_close(u @ torch.diag_embed(along) @ vh, result, atol=1e-4, rtol=0)
    assert (along > 0).all()


def test_a_stack_of_matrices_is_orthogonalised_one_by_one():
    torch.manual_seed(0)
    stack = torch.randn(3, 8, 12) * torch.tensor([1e-4, 1.0, 1e4])[:, None, None]
    torch.testing.assert_close(orthogonalised(stack)[0], orthogonalised(stack[0]))


def test_a_gradient_of_zeros_moves_nothing():
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    MuonWithAdamW([], [weight], lr=0.1, matrix_learning_rate=0.1, matrix_momentum=0.9, weight_decay=0.0).step()
    assert torch.equal(weight, torch.ones(4, 4))


def test_the_blocks_matrices_and_experts_are_muons_and_the_rest_adamws():
    network = small_network()
    chosen = set(map(id, weight_matrices(network)))
    names = {name for name, parameter in network.named_parameters() if id(parameter) in chosen}
    assert {"blocks.0.attn.qkv.weight", "blocks.1.mlp.w1", "patch_mixer.0.mlp.w3.weight"} <= names
    assert {"y_emb_preprocess.attn.proj.weight", "blocks.0.cross_attn.kv_linear.weight"} <= names
    assert not any(part in name for part in ("gate", "adaLN", "embed", "final", "norm", "map") for name in names)
    optimizer = make_optimizer(network, MUON, 1e-3)
    together = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(together) == len(set(map(id, together))) == len(list(network.parameters()))


def test_without_a_matrix_step_every_weight_is_adamws():
    optimizer = make_optimizer(small_network(), ADAMW, 1e-3)
    assert type(optimizer) is torch.optim.AdamW
    assert len(optimizer.param_groups) == 1


def test_weights_that_are_not_matrices_move_as_under_adamw_alone():
    torch.manual_seed(0)
    vector, twin, matrix = (nn.Parameter(torch.randn(s)) for s in ((5,), (5,), (4, 4)))
    twin.data.copy_(vector)
    ours = MuonWithAdamW([vector], [matrix], lr=0.1, matrix_learning_rate=0.1, matrix_momentum=0.9, weight_decay=0.3)
    plain = torch.optim.AdamW([twin], lr=0.1, weight_decay=0.3)
    for _ in range(3):
        vector.grad = twin.grad = torch.randn(5)
        matrix.grad = torch.randn(4, 4)
        ours.step()
        plain.step()
    torch.testing.assert_close(vector, twin)


def test_an_optimizer_that_was_saved_and_loaded_goes_on_as_the_one_that_was_not():
    def grads(network, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    one, two = small_network(), small_network()
    a, b = make_optimizer(one, MUON, 1e-3), make_optimizer(two, MUON, 1e-3)
    for optimizer, network in ((a, one), (b, two)):
        grads(network, 1)
        optimizer.step()
    fresh = make_optimizer(two, MUON, 1e-3)
    fresh.load_state_dict(b.state_dict())
    for optimizer, network in ((a, one), (fresh, two)):
        grads(network, 2)
        optimizer.step()
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right)


def test_muon_learns_a_linear_map_that_it_is_shown():
    torch.manual_seed(0)
    target, layer = torch.randn(8, 8), nn.Linear(8, 8, bias=False)
    optimizer = MuonWithAdamW([], [layer.weight], lr=0.1, matrix_learning_rate=0.1, matrix_momentum=0.9, weight_decay=0)
    first = None
    for _ in range(60):
        loss = (layer.weight - target).square().mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 20
