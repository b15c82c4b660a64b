"""The network and the mathematics give the numbers of the golden files, made with the released architecture."""

import json
import os
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from compiler import needs_compiler
from safetensors import safe_open

from microdit.kernels.compile import compile_blocks, fuse_operations
from microdit.masking.patches import keep_patches
from microdit.model.dit import DiT
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws, denoise, training_loss
from microdit.sampling.guidance import guided
from microdit.sampling.samplers import heun, noise_schedule

FOLDER = Path(os.environ.get("MICRODIT_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
FILES = sorted(FOLDER.glob("*.safetensors"))


def test_there_are_golden_files():
    assert FILES, f"no *.safetensors in {FOLDER}: set MICRODIT_GOLDEN_DIR to the folder that holds them"


class Golden:
    def __init__(self, path: Path):
        with safe_open(path, framework="pt") as file:
            self.config = json.loads(file.metadata()["config"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        self.io = {k.removeprefix("io."): v for k, v in tensors.items() if k.startswith("io.")}
        self.network = DiT(**self.config["dit"])
        state = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
        self.network.load_state_dict(state, strict=True)
        self.objective = EDM(self.config["edm"]["sigma_data"])

    def loss(self, mask_ratio: float) -> torch.Tensor:
        edm = self.config["edm"]
        return training_loss(
            self.network,
            self.io["latents"],
            self.io["y"],
            Draws(self.io["rnd_normal"], self.io["eps"], self.io["mask_noise_loss"]),
            token_path=self.network.token_path,
            objective=EDM(edm["sigma_data"], edm["p_mean"], edm["p_std"]),
            mask_ratio=mask_ratio,
            patch_size=self.config["dit"]["patch_size"],
        ).loss

    def sample(self, guidance_scale: float, read_once: bool) -> torch.Tensor:
        edm = self.config["edm"]
        network = guided(self.network, guidance_scale)
        captions = self.network.read_captions(self.io["y"]) if read_once else self.io["y"]

        def denoiser(x, sigma):
            sigmas = torch.full((len(x), 1, 1, 1), sigma)
            return denoise(network, x.float(), sigmas, captions, self.objective).double()

        sigmas = noise_schedule(self.config["num_inference_steps"], edm["sigma_min"], edm["sigma_max"], edm["rho"])
        *_, result = heun(denoiser, self.io["z"], sigmas)
        return result


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def golden(request) -> Golden:
    return Golden(request.param)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= relative, f"relative error {error:.2e} > {relative:.0e}"


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
    golden.network.zero_grad()
    loss = golden.loss(golden.config["mask_ratio"] if name == "masked75" else 0.0)
    loss.backward()
    gradients = [p.grad.flatten() for p in golden.network.parameters() if p.grad is not None]
    assert_close(loss.detach(), golden.io[f"loss_{name}"], 1e-5)
    assert_close(torch.cat(gradients).double().norm(), golden.io[f"grad_norm_{name}"], 1e-5)


@torch.no_grad()
def test_bfloat16_is_near_float32(golden):
    io, network = golden.io, golden.network
    kept = keep_patches(io["mask_noise"], golden.config["mask_ratio"])
    with torch.autocast("cpu", torch.bfloat16):
        unmasked, masked = network(io["x"], io["t"], io["y"]), network(io["x"], io["t"], io["y"], kept)
    assert_close(unmasked, io["out_unmasked"], 2e-2)
    assert_close(masked, io["out_masked75"], 2e-2)


@pytest.mark.compiles
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_compiled_the_numbers_are_the_same_and_no_operation_is_left_out(monkeypatch, path):
    """As the compiler traces the blocks; the code it writes for a CPU takes minutes and a C++ compiler."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = Golden(path)
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="eager"))
    compile_blocks(compiled.network)
    for name in ("masked75", "unmasked"):
        test_loss_and_gradient_norm_match(compiled, name)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 2
    assert not counters["graph_break"]


@needs_compiler
@pytest.mark.compiles
def test_a_compiler_traces_through_operations_that_are_compiled_already():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    fused = Golden(FILES[0])
    fuse_operations(fused.network)
    for block in fused.network.blocks[:2]:  # a dense one, and one with experts
        block.compile(fullgraph=True, backend="aot_eager")
    test_loss_and_gradient_norm_match(fused, "masked75")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2


@needs_compiler
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fused_the_numbers_are_the_same(path):
    fused = Golden(path)
    fuse_operations(fused.network)
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
