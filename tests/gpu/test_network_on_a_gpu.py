"""On a GPU the network gives the numbers that it gives on a CPU, plain and compiled, the same each time."""

import copy

import pytest
import torch
from denoising import loss_terms
from golden import FILES, Golden, assert_close

from microdit.kernels.compile import compile_network
from microdit.masking.deferred import Deferred
from microdit.masking.maskdit import MaskDiT
from microdit.masking.naive import Naive
from microdit.masking.none import Unmasked
from microdit.masking.patches import keep_patches
from microdit.masking.sprint import Sprint
from microdit.masking.tread import Tread
from microdit.model.feed_forward import ExpertChoice
from microdit.objectives.objective import Draws

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compiled"])
def compiled(request) -> bool:
    return request.param


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request, compiled) -> Golden:
    made = Golden(request.param, "cuda")
    if compiled:
        compile_network(made.network, "cuda")
    return made


@torch.no_grad()
def outputs_match(golden: Golden, tolerance: float) -> None:
    io, network = golden.io, golden.network
    kept = keep_patches(io["mask_noise"], golden.config["mask_ratio"])
    assert torch.equal(kept.mask, io["mask"])
    assert_close(network(io["x"], io["t"], io["y"]), io["out_unmasked"], tolerance)
    assert_close(network(io["x"], io["t"], io["y"], kept), io["out_masked75"], tolerance)


def losses_match(golden: Golden, tolerance: float) -> None:
    for name, ratio in (("masked75", golden.config["mask_ratio"]), ("unmasked", 0.0)):
        loss, gradients = golden.gradients(ratio)
        assert_close(loss, golden.io[f"loss_{name}"], tolerance)
        assert_close(gradients.double().norm(), golden.io[f"grad_norm_{name}"], tolerance)


def test_float32_gives_the_golden_numbers(golden):
    outputs_match(golden, 1e-4)
    losses_match(golden, 1e-4)


def test_bfloat16_is_near_them(golden, compiled):
    # The formulas round more than the kernels do, so that experts choose other patches: most of the error.
    tolerance = 2e-2 if compiled else 5e-2
    with torch.autocast("cuda", torch.bfloat16):
        outputs_match(golden, tolerance)
        losses_match(golden, tolerance)


@torch.no_grad()
@pytest.mark.parametrize("read_once", [False, True])
def test_samples_are_the_golden_ones(golden, read_once):
    assert_close(golden.sample(golden.config["cfg"], read_once), golden.io["sample_cfg"], 1e-3)
    assert_close(golden.sample(1.0, read_once), golden.io["sample_nocfg"], 1e-3)


METHODS = {
    "deferred": (Deferred, [0.75, 0.5, 0.0]),
    "naive": (Naive, [0.75, 0.5, 0.0]),
    "maskdit": (lambda: MaskDiT(0.5, 0.5, 0.1), [0.75, 0.5, 0.0]),
    "tread": (lambda: Tread(0.25, 0.25), [0.75, 0.5, 0.0]),
    "sprint": (lambda: Sprint(0.25, 0.25, 0.5), [0.75, 0.5, 0.0]),
    "none": (Unmasked, [0.0]),
}


def one_step(network, captions, draws, latents, mask_ratio, bf16):
    with torch.autocast(latents.device.type, torch.bfloat16, enabled=bf16):
        terms = loss_terms(network, latents, captions, draws, mask_ratio)
    terms.loss.backward()
    return terms.loss.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("method", "ratio"), [(name, ratio) for name, (_, ratios) in METHODS.items() for ratio in ratios]
)
def test_every_masking_method_has_the_gradients_of_a_cpu(small_network, inputs, compiled, method, ratio):
    path = METHODS[method][0]()
    network = small_network(token_path=path, use_patch_mixer=path.uses_patch_mixer)
    latents, _, captions = inputs(n=4)
    draws = Draws(torch.randn(4, 1, 1, 1), torch.randn_like(latents), torch.rand(4, 16))
    moved = copy.deepcopy(network).cuda()
    if compiled:
        compile_network(moved, "cuda")
    expected = one_step(network, captions, draws, latents, ratio, bf16=False)
    cuda = captions.cuda(), Draws(*(x.cuda() for x in draws)), latents.cuda(), ratio
    for actual, wanted in zip(one_step(moved, *cuda, bf16=False), expected, strict=True):
        assert_close(actual.cpu(), wanted, 1e-4)
    moved.zero_grad()
    loss, gradients = one_step(moved, *cuda, bf16=True)
    assert loss.isfinite()
    assert gradients.isfinite().all()
    assert_close(loss.cpu(), expected[0], 5e-2)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
def test_experts_are_the_same_to_the_last_bit_each_time(compiled, bf16):
    torch.manual_seed(0)
    experts = ExpertChoice(64, 2.0, 32, num_experts=8, capacity=4.0).cuda()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if compiled:
        compile_network(experts, "cuda")
    x = torch.randn(16, 64, 64, device="cuda", requires_grad=True)

    def results():
        for tensor in (x, *experts.parameters()):
            tensor.grad = None
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            out = experts(x)
        out.float().square().sum().backward()
        return [out.detach(), x.grad, *(p.grad for p in experts.parameters())]

    first = results()
    for _ in range(5):
        for again, before in zip(results(), first, strict=True):
            assert torch.equal(again, before)


def test_a_step_waits_for_nothing(small_network, inputs, compiled):
    """No value is read back to the host between the batch's arrival and the optimizer's step."""
    network = small_network().cuda()
    if compiled:
        compile_network(network, "cuda")
    latents, _, captions = (x.cuda() for x in inputs(n=4))
    draws = Draws(*(x.cuda() for x in (torch.randn(4, 1, 1, 1), torch.randn(4, 3, 8, 8), torch.rand(4, 16))))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step():
        one_step(network, captions, draws, latents, 0.75, bf16=True)
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.25)
        optimizer.step()
        optimizer.zero_grad()

    step()  # what is compiled or made at first may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
