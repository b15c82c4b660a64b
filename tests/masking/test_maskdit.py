"""MaskDiT as a token path: a decoder of its own over all patches, and a second task on the dropped ones."""

import pytest
import torch

from microdit.cost.flops import training_flops_per_image
from microdit.masking.maskdit import MaskDiT
from microdit.masking.naive import Naive
from microdit.model.blocks import DiTBlock
from microdit.model.dit import DiT
from microdit.model.sizes import MicroDiT_XL_2
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws, LossTerms, training_loss


@pytest.fixture
def make(small_network):
    def network(**overrides) -> DiT:
        path = MaskDiT(decoder_depth_ratio=0.5, decoder_width_ratio=0.5, reconstruction_weight=0.1)
        return small_network(use_patch_mixer=False, token_path=path, **overrides)

    return network


def draws() -> Draws:
    generator = torch.Generator().manual_seed(6)
    noise_level, noise = torch.randn(2, 1, 1, 1, generator=generator), torch.randn(2, 3, 8, 8, generator=generator)
    return Draws(noise_level, noise, torch.rand(2, 16, generator=generator))


def terms_of(network, path, latents, captions, mask_ratio=0.75) -> LossTerms:
    options = {"objective": EDM(0.9, -0.6, 1.2), "mask_ratio": mask_ratio, "patch_size": 2}
    return training_loss(network, latents, captions, draws(), token_path=path, **options)


def pixels(mask: torch.Tensor) -> torch.Tensor:
    return mask.view(-1, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)


@torch.no_grad()
def test_without_a_mask_the_extra_loss_is_exactly_zero(make, inputs):
    network = make()
    latents, _, captions = inputs()
    terms = terms_of(network, network.token_path, latents, captions, mask_ratio=0.0)
    assert (terms.extra == 0).all()
    assert torch.equal(terms.loss, terms.per_sample.mean())


@torch.no_grad()
def test_the_loss_is_denoising_on_kept_patches_and_a_tenth_of_reconstruction_on_dropped_ones(make, inputs):
    network = make()
    latents, _, captions = inputs()
    terms = terms_of(network, network.token_path, latents, captions)
    kept = network.token_path.keep(draws().mask, 0.75, (4, 4))
    denoising, reconstruction = [], []
    for n in range(2):
        sigma = (-0.6 + 1.2 * draws().noise_level[n]).exp()
        noisy = latents[n] + sigma * draws().noise[n]
        total = sigma**2 + 0.9**2
        alone = {"indices": kept.indices[n : n + 1], "mask": kept.mask[n : n + 1]}
        raw = network(
            (noisy / total.sqrt())[None], sigma.flatten().log() / 4, captions[n : n + 1], type(kept)(**alone)
        )[0]
        denoised = 0.9**2 / total * noisy + sigma * 0.9 / total.sqrt() * raw
        errors, rebuilt = [], []
        for p in range(16):
            window = (slice(None), slice(2 * (p // 4), 2 * (p // 4) + 2), slice(2 * (p % 4), 2 * (p % 4) + 2))
            if kept.mask[n, p]:
                target = (noisy[window] - noisy[window].mean()) / (noisy[window].var() + 1e-6).sqrt()
                rebuilt.append((denoised[window] - target).square().mean())
            else:
                errors.append((total / (sigma * 0.9) ** 2 * (denoised - latents[n]) ** 2)[window].mean())
        assert (len(errors), len(rebuilt)) == (4, 12)
        denoising.append(torch.stack(errors).mean())
        reconstruction.append(0.1 * torch.stack(rebuilt).mean())
    torch.testing.assert_close(terms.per_sample, torch.stack(denoising), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.extra, torch.stack(reconstruction), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms.loss, terms.per_sample.mean() + terms.extra.mean())


@torch.no_grad()
def test_neither_backbone_nor_decoder_sees_the_content_of_dropped_patches(make, inputs):
    network = make()
    latents, noise_label, captions = inputs()
    kept = network.token_path.keep(draws().mask, 0.75, (4, 4))
    changed = latents + 3 * pixels(kept.mask)
    assert torch.equal(network(latents, noise_label, captions, kept), network(changed, noise_label, captions, kept))


@torch.no_grad()
def test_dropped_patches_are_predicted_each_by_its_place(make, inputs):
    network = make()
    latents, noise_label, captions = inputs()
    kept = network.token_path.keep(draws().mask, 0.75, (4, 4))
    output = network(latents, noise_label, captions, kept)
    at_dropped = output[0].unfold(1, 2, 2).unfold(2, 2, 2).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    at_dropped = at_dropped[kept.mask[0].bool()]
    assert torch.pdist(at_dropped).min() > 1e-4


def test_every_weight_of_the_decoder_learns_and_is_in_the_state_dict(make, inputs):
    network = make()
    latents, _, captions = inputs()
    terms_of(network, network.token_path, latents, captions).loss.backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle
    own = {key for key in network.state_dict() if key.startswith("token_path.")}
    assert {"token_path.learned_token", "token_path.map_in.1.weight", "token_path.decoder.1.attn.qkv.weight"} <= own
    assert not any("positions" in key for key in own)  # they follow from the size, and change with it


def test_a_saved_decoder_comes_back(make, inputs):
    network, other = make(), make(fresh=True)
    other.load_state_dict(network.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(network(*inputs()), other(*inputs()))


def test_the_decoder_starts_as_the_identity_with_the_deviations_of_light_blocks(make):
    network = make(fresh=True, dim=128, head_dim=32)
    for block in network.token_path.decoder:
        assert (block.adaLN_modulation[1].weight == 0).all()
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert block.attn.proj.weight.std().item() == pytest.approx(0.02 / 8**0.5, rel=0.1)  # by the backbone's depth
    assert 0.01 < network.token_path.learned_token.std() < 0.03


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 12), (16, 16)])
def test_it_generates_at_any_size(make, inputs, height, width):
    latents, noise_label, captions = inputs(2, height, width)
    assert make()(latents, noise_label, captions).shape == latents.shape


def test_the_decoder_of_the_papers_network_is_eight_blocks_of_512():
    with torch.device("meta"):
        path = MaskDiT(decoder_depth_ratio=0.285, decoder_width_ratio=0.5, reconstruction_weight=0.1)
        network = MicroDiT_XL_2(use_patch_mixer=False, token_path=path)
    assert len(path.decoder) == 8
    assert path.learned_token.shape[-1] == 512
    assert all(isinstance(block, DiTBlock) for block in path.decoder)
    with torch.device("meta"):
        naive = MicroDiT_XL_2(use_patch_mixer=False, token_path=Naive())
    own = sum(p.numel() for p in path.parameters())
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in naive.parameters()) + own
    with_decoder, without = (training_flops_per_image(n, 0.75, 77) for n in (network, naive))
    # At least forward and backward of its attention's and feed-forward's products, on all 256 patches.
    products = sum(p.numel() for block in path.decoder for part in (block.attn, block.mlp) for p in part.parameters())
    assert with_decoder - without > 6 * 256 * products


def test_a_decoder_has_no_more_blocks_than_a_network_may():
    with torch.device("meta"), pytest.raises(ValueError, match=r"depth_ratio=10\.0 of 101 blocks are 1,010, and 1,000"):
        MicroDiT_XL_2(depth=101, use_patch_mixer=False, token_path=MaskDiT(10.0, 0.5, 0.1))


@pytest.mark.parametrize("ratio", ["decoder_depth_ratio", "decoder_width_ratio"])
def test_a_decoder_of_nothing_is_refused(ratio):
    settings = {"decoder_depth_ratio": 0.5, "decoder_width_ratio": 0.5, "reconstruction_weight": 0.1, ratio: 0.0}
    with pytest.raises(ValueError, match=f"{ratio} is a share of the backbone, above 0 and at most 10; got 0.0"):
        MaskDiT(**settings)
