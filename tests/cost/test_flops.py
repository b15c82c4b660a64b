"""FLOPs counted without computing are those of computing, and the paper's."""

import pytest
import torch
from flops_shares import flops_shares
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from microdit.cost.flops import kept_tokens, training_flops_per_image
from microdit.masking.deferred import Deferred
from microdit.masking.maskdit import MaskDiT
from microdit.masking.none import Unmasked
from microdit.masking.patches import keep_patches
from microdit.model.sizes import MicroDiT_Tiny_2, MicroDiT_XL_2


@pytest.mark.parametrize("mask_ratio", [0.0, 0.75])
@pytest.mark.parametrize("use_patch_mixer", [True, False])
def test_counting_on_meta_agrees_with_counting_a_real_step(small_network, mask_ratio, use_patch_mixer):
    network = small_network(input_size=16, use_patch_mixer=use_patch_mixer)
    kept = keep_patches(torch.rand(1, 64), mask_ratio)
    # The plain kernel: fused ones compute the attention weights again in the backward pass.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 3, 16, 16), torch.randn(1), torch.randn(1, 7, 16), kept).sum().backward()
    assert training_flops_per_image(network, mask_ratio, 7) == pytest.approx(counter.get_total_flops(), rel=0.001)


@pytest.mark.parametrize(
    ("input_size", "mask_ratio", "gigaflops"), [(32, 0.75, 282), (32, 0.0, 714), (64, 0.75, 1069), (64, 0.0, 3003)]
)
def test_an_image_costs_what_the_papers_network_costs(input_size, mask_ratio, gigaflops):
    with torch.device("meta"):
        network = MicroDiT_XL_2(input_size=input_size, pos_interp_scale=input_size / 32)
    assert training_flops_per_image(network, mask_ratio, 77) == pytest.approx(gigaflops * 1e9, rel=0.002)


def test_counting_allocates_nothing_and_leaves_the_network_alone(small_network):
    network = small_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sizes = []

    class Allocations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.device.type != "meta":
                sizes.append(result.numel())
            return result

    with Allocations():
        training_flops_per_image(network, 0.75, 5)
    assert sum(sizes) < 0.01 * sum(p.numel() for p in network.parameters())
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_kept_tokens_are_those_of_the_training_size():
    with torch.device("meta"):
        network = MicroDiT_Tiny_2(input_size=64)
    assert kept_tokens(network, 0.75) == (256, 1024)
    assert kept_tokens(network, 0.0) == (1024, 1024)


def test_a_mask_on_a_path_that_drops_nothing_is_refused(small_network):
    with pytest.raises(ValueError, match="drops no patches"):
        training_flops_per_image(small_network(use_patch_mixer=False, token_path=Unmasked()), 0.5, 5)


# At 256 px and 75 % masking: mixer, backbone, captions, in per cent (Tiny and XL as in the paper's networks).
@pytest.mark.parametrize(
    ("make", "shares"), [(MicroDiT_XL_2, (38, 59, 3)), (MicroDiT_Tiny_2, (55, 42, 3))], ids=["xl", "tiny"]
)
def test_the_mixer_is_light_in_parameters_rather_than_in_flops(make, shares):
    with torch.device("meta"):
        counted = flops_shares(make(), 0.75, 77)
    parts = [100 * counted[part] for part in ("patch_mixer", "backbone", "captions")]
    assert parts == pytest.approx(shares, abs=0.8)
    assert sum(counted.values()) == pytest.approx(1.0)


def test_what_a_path_adds_is_its_share(small_network):
    path = MaskDiT(decoder_depth_ratio=0.5, decoder_width_ratio=0.5, reconstruction_weight=0.1)
    shares = flops_shares(small_network(use_patch_mixer=False, token_path=path), 0.75, 5)
    assert shares["patch_mixer"] == 0
    assert 0.1 < shares["token_path"] < 0.9
    assert flops_shares(small_network(), 0.75, 5)["token_path"] == 0


def test_blocks_of_patches_are_counted_as_they_are_kept(small_network):
    network = small_network(input_size=12, token_path=Deferred(block_size=2))  # 9 blocks, 2 of which stay
    assert kept_tokens(network, 0.75) == (8, 36)
    assert training_flops_per_image(network, 0.75, 5) < training_flops_per_image(small_network(input_size=12), 0.75, 5)
