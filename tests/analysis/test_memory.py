"""Memory is counted without being used, and is what torch uses."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from microdit.analysis.memory import activation_bytes, training_memory
from microdit.model.masking import keep_patches
from microdit.model.sizes import MicroDiT_XL_2


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
    known = {"ranks": 8, "bf16": True, "ema": False, "images": 32, "mask_ratio": 0.75, "caption_length": 77}
    sharded = training_memory(network, sharded=True, **known)
    whole = training_memory(network, sharded=False, **known)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert whole.parameters == 4 * parameters
    assert sharded.parameters == pytest.approx(whole.parameters / 8, rel=0.01)
    assert sharded.optimizer == 2 * sharded.parameters == 2 * sharded.gradients
    # Without sharding autocast keeps a bfloat16 copy of the weights it casts, which are almost all.
    assert whole.activations - sharded.activations == pytest.approx(2 * parameters, rel=0.1)
    assert sharded.total < whole.total


def test_activations_grow_with_images_and_with_patches():
    with torch.device("meta"):
        network = MicroDiT_XL_2()

    def count(images, ratio):
        return activation_bytes(network, images, ratio, 77, bf16=True, weights_are_cast=False)

    assert count(8, 0.75) == pytest.approx(4 * count(2, 0.75), rel=0.02)
    assert count(2, 0.0) > 2 * count(2, 0.75)
