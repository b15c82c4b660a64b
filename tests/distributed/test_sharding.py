"""A sharded network computes what the whole one does, also by the kernels for GPUs: every weight is there when it is
needed, those of norms included."""

import copy

import pytest
import torch
from denoising import loss_terms
from torch.distributed.device_mesh import init_device_mesh

from microdit.distributed.sharding import shard, whole_tensor
from microdit.kernels.gpu import operations
from microdit.kernels.gpu.operations import gpu_operations
from microdit.model.operations import use_operations
from microdit.objectives.objective import Draws


@pytest.fixture
def mesh(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("by_kernels", [False, True], ids=["formulas", "kernels"])
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_a_sharded_network_has_the_gradients_of_the_whole(monkeypatch, small_network, inputs, mesh, bf16, by_kernels):
    monkeypatch.setattr(operations, "HALVES", ())  # Triton's interpreter multiplies no matrices in bfloat16
    whole = small_network()
    parts = copy.deepcopy(whole)
    shard(parts, mesh, bf16)
    if by_kernels:
        use_operations(parts, gpu_operations())
    latents, _, captions = inputs(n=2)
    torch.manual_seed(0)
    draws = Draws(torch.randn(2, 1, 1, 1), torch.randn(2, 3, 8, 8), torch.rand(2, 16))
    losses = []
    for network in (whole, parts):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            terms = loss_terms(network, latents, captions, draws, 0.5)
        terms.loss.backward()
        losses.append(terms.loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-2 if bf16 else 1e-5)
    found, expected = (
        torch.cat([whole_tensor(p.grad).flatten() for p in network.parameters() if p.grad is not None])
        for network in (parts, whole)
    )
    assert found.dtype == torch.float32
    assert (found - expected).norm() <= (0.1 if bf16 else 1e-5) * expected.norm()
