"""The network and the mathematics give the numbers of the golden files, made with the released architecture."""

import pytest
import torch
from compiler import needs_compiler
from golden import FILES, FOLDER, Golden, assert_close

from microdit.kernels.compile import compile_network
from microdit.masking.patches import keep_patches
from microdit.objectives.objective import denoise
from microdit.sampling.guidance import guided


def test_there_are_golden_files():
    assert FILES, f"no *.safetensors in {FOLDER}: set MICRODIT_GOLDEN_DIR to the folder that holds them"


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request) -> Golden:
    return Golden(request.param)


@torch.no_grad()
def test_raw_outputs_match(golden):
    io, network = golden.io, golden.network
    kept = keep_patches(io["mask_noise"], golden.config["mask_ratio"])
    assert torch.equal(kept.mask, io["mask"])
    assert_close(network(io["x"], io["t"], io["y"]), io["out_unmasked"], 1e-5)
    assert_close(network(io["x"], io["t"], io["y"], kept), io["out_masked75"], 1e-5)
    assert_close(guided(network, golden.config["cfg"])(io["x"], io["t"], io["y"]), io["out_cfg"], 1e-5)


@pytest.mark.parametrize("name", ["masked75", "unmasked"])
def test_loss_and_gradient_norm_match(golden, name):
    loss, gradients = golden.gradients(golden.config["mask_ratio"] if name == "masked75" else 0.0)
    assert_close(loss, golden.io[f"loss_{name}"], 1e-5)
    assert_close(gradients.double().norm(), golden.io[f"grad_norm_{name}"], 1e-5)


@torch.no_grad()
def test_bfloat16_is_near_float32(golden):
    io, network = golden.io, golden.network
    kept = keep_patches(io["mask_noise"], golden.config["mask_ratio"])
    with torch.autocast("cpu", torch.bfloat16):
        unmasked, masked = network(io["x"], io["t"], io["y"]), network(io["x"], io["t"], io["y"], kept)
    assert_close(unmasked, io["out_unmasked"], 2e-2)
    assert_close(masked, io["out_masked75"], 2e-2)


@needs_compiler
@pytest.mark.compiles
def test_a_compiler_traces_through_operations_that_are_compiled_already():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fused = Golden(FILES[0])
    compile_network(fused.network, "cpu")
    for block in fused.network.blocks[:2]:  # a dense one, and one with experts
        block.compile(fullgraph=True, backend="aot_eager")
    test_loss_and_gradient_norm_match(fused, "masked75")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


@needs_compiler
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fused_the_numbers_are_the_same(path):
    fused = Golden(path)
    compile_network(fused.network, "cpu")
    test_raw_outputs_match(fused)
    for name in ("masked75", "unmasked"):
        test_loss_and_gradient_norm_match(fused, name)
    for read_once in (False, True):
        test_samples_match(fused, read_once)


@torch.no_grad()
def test_denoised_matches(golden):
    io, sigma = golden.io, golden.io["sigma"][:, None, None, None]
    assert_close(
        denoise(golden.network, io["latents"] + sigma * io["eps"], sigma, io["y"], golden.objective),
        io["denoised"],
        1e-5,
    )


@torch.no_grad()
@pytest.mark.parametrize("read_once", [False, True])
def test_samples_match(golden, read_once):
    assert_close(golden.sample(golden.config["cfg"], read_once), golden.io["sample_cfg"], 1e-4)
    assert_close(golden.sample(1.0, read_once), golden.io["sample_nocfg"], 1e-4)
