"""Memory is counted without being used, and is what torch uses."""

import json
import subprocess
import sys

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from microdit.cost.memory import activation_bytes, training_memory
from microdit.masking.patches import keep_patches
from microdit.model.sizes import MicroDiT_XL_2

# What one of eight ranks holds after a step. Their exchange is torch's fake one; their shards and storages are real.
ONE_RANK_OF_EIGHT = """
import json

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from microdit.cost.memory import training_memory
from microdit.model.sizes import MicroDiT_Tiny_2
from microdit.distributed.sharding import local_part, shard

torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=8)
sizes = {"dim": 128, "depth": 4, "head_dim": 32, "multiple_of": 32, "patch_mixer_depth": 2, "patch_mixer_dim": 64}
network = MicroDiT_Tiny_2(input_size=8, caption_channels=64, **sizes)
counted = training_memory(
        network,
    parts=8,
    bf16=False,
    ema=False,
    compiled=False,
    images=2,
    micro_batches=1,
    mask_ratio=0.0,
    caption_length=5,
)
shard(network, init_device_mesh("cpu", (8,)), bf16=False)
optimizer = torch.optim.AdamW(network.parameters())
network(torch.randn(2, 4, 8, 8), torch.zeros(2), torch.randn(2, 5, 64)).square().mean().backward()
optimizer.step()


def held(tensors):
    storages = {s.data_ptr(): s.nbytes() for s in (local_part(tensor).untyped_storage() for tensor in tensors)}
    return sum(storages.values())


moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
found = {
    "parameters": held(network.parameters()),
    "gradients": held(p.grad for p in network.parameters()),
    "optimizer": held(moments),
}
print(json.dumps([found, {name: getattr(counted, name) for name in found}]))
"""


def held_after_forward(network, images, mask_ratio, bf16) -> int:
    """Bytes that torch's profiler sees allocated in a forward pass and not freed until its end."""
    latents = torch.randn(images, network.in_channels, network.input_size, network.input_size)
    captions = torch.randn(images, 77, network.caption_channels)
    label, uniform = torch.zeros(images), torch.rand(images, (network.input_size // network.patch_size) ** 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            output = network(latents, label, captions, keep_patches(uniform, mask_ratio))
        held = output
    del held
    return sum(event.self_cpu_memory_usage for event in profiled.events()) - output.untyped_storage().nbytes()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
def test_counted_activations_are_what_torch_holds(small_network, mask_ratio, bf16):
    network = small_network(input_size=32, dim=128, depth=4, head_dim=32, patch_mixer_dim=64)
    counted = activation_bytes(network, 8, mask_ratio, 77, bf16)
    assert counted == pytest.approx(held_after_forward(network, 8, mask_ratio, bf16), rel=0.1)


def test_xl_on_eight_devices_is_counted_without_being_built():
    with torch.device("meta"):
        network = MicroDiT_XL_2()
    known = {"bf16": True, "ema": False, "compiled": False, "images": 32, "micro_batches": 1}
    known |= {"mask_ratio": 0.75, "caption_length": 77}
    sharded = training_memory(network, parts=8, **known)
    whole = training_memory(network, parts=1, **known)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert whole.parameters == 4 * parameters
    assert sharded.parameters == pytest.approx(whole.parameters / 8, rel=0.01)
    assert sharded.optimizer == 2 * sharded.parameters == 2 * sharded.gradients
    # Without sharding autocast keeps a bfloat16 copy of the weights it casts: all but those of the conditioning.
    conditioning = ("adaLN_modulation", "t_embedder", "pooled_y_emb_process")
    cast = sum(p.numel() for name, p in network.named_parameters() if not any(part in name for part in conditioning))
    assert whole.activations - sharded.activations == pytest.approx(2 * cast, rel=0.1)
    assert sharded.total < whole.total


def test_activations_grow_with_images_and_with_patches():
    with torch.device("meta"):
        network = MicroDiT_XL_2()

    def count(images, ratio):
        return activation_bytes(network, images, ratio, 77, bf16=True, weights_are_cast=False)

    assert count(8, 0.75) == pytest.approx(4 * count(2, 0.75), rel=0.02)
    assert count(2, 0.0) > 2 * count(2, 0.75)


def test_one_rank_of_eight_holds_what_is_counted():
    ended = subprocess.run([sys.executable, "-c", ONE_RANK_OF_EIGHT], capture_output=True, text=True, check=True)
    found, counted = json.loads(ended.stdout)
    assert found == pytest.approx(counted, rel=0.01)


MEASURED = {  # GiB at the peak of a step of XL in bfloat16 on an H100 80GB, compiled (benchmarks/RESULTS.md)
    (256, 0.75, 256): 56.0,
    (256, 0.75, 320): 66.2,
    (256, 0.0, 128): 67.8,
    (512, 0.75, 64): 54.7,
}


@pytest.mark.parametrize(("pixels", "mask_ratio", "images"), MEASURED)
def test_a_gpu_holds_what_is_counted_where_none_is(pixels, mask_ratio, images):
    with torch.device("meta"):
        network = MicroDiT_XL_2(input_size=pixels // 8, pos_interp_scale=pixels / 256)
    known = {"parts": 1, "bf16": True, "ema": False, "compiled": True, "caption_length": 77}
    counted = training_memory(network, images=images, mask_ratio=mask_ratio, micro_batches=1, **known)
    assert counted.total / 2**30 == pytest.approx(MEASURED[pixels, mask_ratio, images], rel=0.05)
    assert not torch.is_autocast_enabled("cuda")
    added_up = training_memory(network, images=images, mask_ratio=mask_ratio, micro_batches=2, **known)
    assert added_up.total == counted.total + counted.gradients
