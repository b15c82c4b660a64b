"""Muon: steps of even size in all directions, for matrices and stacks of them; AdamW for the rest."""

import pytest
import torch
from torch import nn

from microdit.build import SettingsError
from microdit.checkpoints.reading import CheckpointError
from microdit.model.sizes import MicroDiT_Tiny_2
from microdit.training.optimizers import (
    KINDS,
    MuonWithAdamW,
    check_optimizer,
    check_states,
    make_optimizer,
    orthogonalised,
    parameter_kinds,
    scaled_rates,
)

ADAMW = {"_target_": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.9, 0.99], "weight_decay": 0.0}
MUON = ADAMW | {
    "_target_": "microdit.training.optimizers.MuonWithAdamW",
    "kinds": {"matrices": {"lr": 1e-2, "momentum": 0.95}},
}


def muons(*weights):
    return {"params": list(weights), "momentum": 0.9, "lr": 0.1}


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


def state_of(settings: dict, network) -> dict:
    """What an optimizer keeps after a step."""
    optimizer = make_optimizer(network, settings)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "NAdam", "RMSprop", "Rprop", "Adagrad", "SGD", "ASGD"])
def test_what_an_optimizer_keeps_is_what_a_run_goes_on_from(name):
    settings = {"_target_": f"torch.optim.{name}", "lr": 1e-3}
    check_states(state_of(settings, small_network()), small_network(), settings, "a")
    check_states(state_of(MUON, small_network()), small_network(), MUON, "a")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda state: state.pop("exp_avg"), r"a: .* does not fit, exp_avg of parameter 0 \(shape "),
        (lambda state: state.update(exp_avg=torch.zeros(1)), "does not fit, exp_avg of"),
        (lambda state: state.update(exp_avg=state["exp_avg"].bool()), "does not fit, exp_avg of"),
        (lambda state: state.update(exp_avg_sq="x"), "does not fit, exp_avg_sq of"),
        (lambda state: state.update(step=torch.ones(3)), "does not fit, step of"),
    ],
)
def test_what_no_optimizer_keeps_is_told_with_its_place(changed, told):
    saved = state_of(MUON, small_network())
    check_states({**saved, "state": {}}, small_network(), MUON, "a")
    changed(saved["state"][0])
    with pytest.raises(CheckpointError, match=told):
        check_states(saved, small_network(), MUON, "a")
    with pytest.raises(CheckpointError, match=r"an optimizer of \[1\] parameters, and this run's has"):
        check_states({"state": {}, "param_groups": [{"params": [0]}]}, small_network(), MUON, "a")


def test_a_gradient_of_zeros_moves_nothing():
    weight = nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    MuonWithAdamW([muons(weight)], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(weight, torch.ones(4, 4))


def test_the_blocks_matrices_and_experts_are_muons_and_the_rest_adamws():
    network = small_network()
    chosen = set(map(id, parameter_kinds(network)["matrices"]))
    names = {name for name, parameter in network.named_parameters() if id(parameter) in chosen}
    assert {"blocks.0.attn.qkv.weight", "blocks.1.mlp.w1", "patch_mixer.0.mlp.w3.weight"} <= names
    assert {"y_emb_preprocess.attn.proj.weight", "blocks.0.cross_attn.kv_linear.weight"} <= names
    assert not any(part in name for part in ("gate", "adaLN", "embed", "final", "norm", "map") for name in names)
    optimizer = make_optimizer(network, MUON)
    together = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(together) == len(set(map(id, together))) == len(list(network.parameters()))


def test_without_kinds_every_weight_is_in_one_group():
    optimizer = make_optimizer(small_network(), ADAMW)
    assert type(optimizer) is torch.optim.AdamW
    assert len(optimizer.param_groups) == 1


def test_weights_that_are_not_matrices_move_as_under_adamw_alone():
    torch.manual_seed(0)
    vector, twin, matrix = (nn.Parameter(torch.randn(s)) for s in ((5,), (5,), (4, 4)))
    twin.data.copy_(vector)
    ours = MuonWithAdamW([{"params": [vector]}, muons(matrix)], lr=0.1, weight_decay=0.3)
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
    a, b = make_optimizer(one, MUON), make_optimizer(two, MUON)
    for optimizer, network in ((a, one), (b, two)):
        grads(network, 1)
        optimizer.step()
    fresh = make_optimizer(two, MUON)
    fresh.load_state_dict(b.state_dict())
    for optimizer, network in ((a, one), (fresh, two)):
        grads(network, 2)
        optimizer.step()
    for left, right in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(left, right)


def test_muon_learns_a_linear_map_that_it_is_shown():
    torch.manual_seed(0)
    target, layer = torch.randn(8, 8), nn.Linear(8, 8, bias=False)
    optimizer = MuonWithAdamW([muons(layer.weight)], lr=0.1, weight_decay=0)
    first = None
    for _ in range(60):
        loss = (layer.weight - target).square().mean()
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 20


def test_every_parameter_is_of_exactly_one_kind():
    network = small_network()
    found = parameter_kinds(network)
    assert list(found) == list(KINDS)
    assert all(found.values())
    assert sorted(id(p) for of_kind in found.values() for p in of_kind) == sorted(map(id, network.parameters()))


def test_any_optimizer_of_torch_is_named_and_kinds_differ_where_they_are_told_to():
    settings = {
        "_target_": "torch.optim.RAdam",
        "lr": 0.1,
        "weight_decay": 0.2,
        "kinds": {"norms_and_biases": {"weight_decay": 0}},
    }
    optimizer = make_optimizer(small_network(), settings)
    assert type(optimizer) is torch.optim.RAdam
    rest, vectors = optimizer.param_groups
    assert (rest["weight_decay"], vectors["weight_decay"], vectors["lr"]) == (0.2, 0, 0.1)
    assert all(parameter.ndim < 2 for parameter in vectors["params"])
    assert all(parameter.ndim >= 2 for parameter in rest["params"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"_target_": "torch.optim.AdamV"}, "cannot be imported"),
        ({"_target_": "torch.nn.Linear"}, "is not of microdit"),
        ({"_target_": "microdit.model.dit.DiT"}, "does not make a Optimizer"),
        ({"beta": 0.9}, "has no setting 'beta'; did you mean 'betas'"),
        ({"kinds": {"matrix": {"lr": 1.0}}}, "optimizer.kinds has no kind .matrix.. It knows: matrices: "),
        ({"kinds": {"matrices": 0.1}}, "^optimizer.kinds.matrices must be settings by name, got 0.1"),
        ({"differentiable": True}, "AdamW cannot train with .*leaf"),
    ],
)
def test_an_optimizer_that_cannot_be_meant_is_refused_before_there_is_a_network(changed, said):
    with pytest.raises(SettingsError, match=said):
        check_optimizer(ADAMW | changed)


@pytest.mark.parametrize("name", ["SparseAdam", "LBFGS"])
def test_an_optimizer_that_no_network_can_be_trained_with_is_refused(name):
    with pytest.raises(SettingsError, match=f"torch.optim.{name} cannot train with"):
        check_optimizer({"_target_": f"torch.optim.{name}", "lr": 1e-3})


@pytest.mark.parametrize("name", ["SGD", "RAdam", "NAdam", "Adagrad", "RMSprop", "Adadelta", "Adamax", "ASGD"])
def test_the_others_of_torch_are_accepted(name):
    check_optimizer({"_target_": f"torch.optim.{name}", "lr": 1e-3})


def test_what_only_a_gpu_does_is_accepted_on_any_machine():
    check_optimizer(ADAMW | {"capturable": True})


def test_a_factor_scales_every_rate_and_nothing_else():
    scaled = scaled_rates(MUON, 0.5)
    assert (scaled["lr"], scaled["kinds"]["matrices"]) == (5e-4, {"lr": 5e-3, "momentum": 0.95})
    assert {name: value for name, value in scaled.items() if name not in ("lr", "kinds")} == {
        name: value for name, value in MUON.items() if name not in ("lr", "kinds")
    }


def test_matrices_turned_together_move_as_each_by_itself(monkeypatch):
    torch.manual_seed(0)
    matrices = [nn.Parameter(torch.randn(6, 4)) for _ in range(3)]
    twins = [nn.Parameter(matrix.detach().clone()) for matrix in matrices]
    for matrix, twin in zip(matrices, twins, strict=True):
        matrix.grad = torch.randn(6, 4)
        twin.grad = matrix.grad.clone()
    MuonWithAdamW([muons(*twins)], lr=0.1).step()
    monkeypatch.setattr("microdit.training.optimizers.turned_together", lambda matrices: [list(matrices)])  # as on GPUs
    MuonWithAdamW([muons(*matrices)], lr=0.1).step()
    for matrix, twin in zip(matrices, twins, strict=True):
        torch.testing.assert_close(matrix, twin)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"kinds": {"matrices": {"lr": 1e-2, "momentun": 0.9}}},
            "matrices has no setting 'momentun'; did you mean 'mom",
        ),
        ({"kinds": {"norms": {"lr": 1.0}}}, "no kind 'norms'.*norms_and_biases: all that is no matrix"),
        ({"betas": 0.9}, "^optimizer.betas must be a list .*got 0.9"),
        ({"weight_decay": "lots"}, "^optimizer.weight_decay must be a number, got .lots"),
        ({"lr": -1.0}, "cannot train with .*Invalid learning rate"),
        ({"kinds": {"matrices": {"lr": "x"}}}, "^optimizer.kinds.matrices.lr must be a number, got 'x'"),
        (
            {"kinds": {"matrices": {"momentum": "x"}}},
            "^optimizer.kinds.matrices.momentum must be a number or .* got 'x'",
        ),
        ({"kinds": 3}, "^optimizer.kinds must be settings by name or null, got 3"),
        ({"kinds": {"matrices": {"params": 3}}}, "matrices has no setting 'params'"),
        ({"kinds": {"norms_and_biases": {"momentum": 0.9}}}, "MuonWithAdamW cannot train with "),
    ],
)
def test_a_mistake_in_a_kind_or_in_a_value_is_told_before_anything_is_built(changed, said):
    with pytest.raises(SettingsError, match=said):
        check_optimizer(MUON | changed)
