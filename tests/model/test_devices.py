"""No tensor is on another device than its network, and none is read by the host, which would wait for it.

All of it runs on a GPU that is not there, by torch's fake tensors, which have no numbers to be read. Where no GPU is,
torch does not differentiate them: that is for tests/gpu.
"""

import pytest
import torch
from denoising import loss_terms
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from microdit.cost.memory import without_storage
from microdit.kernels.gpu.operations import gpu_operations
from microdit.masking.deferred import Deferred
from microdit.masking.maskdit import MaskDiT
from microdit.masking.naive import Naive
from microdit.masking.none import Unmasked
from microdit.masking.sprint import Sprint
from microdit.masking.tread import Tread
from microdit.model.operations import FORMULAS, use_operations
from microdit.model.sizes import layerwise_scaled_dit
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws
from microdit.sampling.guidance import guided_denoiser
from microdit.sampling.samplers import SAMPLERS, noise_schedule

PATHS = {
    "deferred": Deferred,
    "naive": Naive,
    "maskdit": lambda: MaskDiT(0.5, 0.5, 0.1),
    "none": Unmasked,
    "tread": lambda: Tread(0.25, 0.25),
    "sprint": lambda: Sprint(0.25, 0.25, 0.1),
    "sprint that drops paths unmasked": lambda: Sprint(0.25, 0.25, 0.1, drops_unmasked=True),
}


def on_meta(settings, **changed):
    with torch.device("meta"):
        return layerwise_scaled_dit(**{**settings, **changed})


def test_what_the_host_reads_would_be_noticed():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.empty(1, device="cuda").item()


@pytest.fixture(params=[FORMULAS, gpu_operations()], ids=["formulas", "kernels"])
def operations(request):
    return request.param


@pytest.mark.parametrize("mask_ratio", [0.0, 0.5])
@pytest.mark.parametrize("path", PATHS)
def test_the_loss_stays_on_the_gpu(small_settings, operations, path, mask_ratio):

    token_path = PATHS[path]()
    if not token_path.drops_patches and mask_ratio:
        pytest.skip("this path drops nothing")
    built = on_meta(small_settings, token_path=token_path, use_patch_mixer=token_path.uses_patch_mixer)
    with FakeTensorMode(), torch.device("cuda"):
        network = without_storage(built, torch.float32)
        use_operations(network, operations)
        latents, captions = torch.empty(2, 3, 8, 8), torch.empty(2, 5, 16)
        draws = Draws(torch.empty(2, 1, 1, 1), torch.empty(2, 3, 8, 8), torch.empty(2, 16))
        terms = loss_terms(network, latents, captions, draws, mask_ratio)
    assert {term.device.type for term in terms} == {"cuda"}


@torch.no_grad()
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_stay_on_the_gpu(small_settings, operations, sampler):

    built, levels = on_meta(small_settings), noise_schedule(4)
    with FakeTensorMode(), torch.device("cuda"):
        network = without_storage(built, torch.float32)
        use_operations(network, operations)
        captions = network.read_captions(torch.empty(2, 5, 16))
        denoiser = guided_denoiser(network, captions, EDM(0.9), 5.0, (1.0, 80.0))
        *_, latents = SAMPLERS[sampler].states(denoiser, torch.empty(2, 3, 8, 8), levels)
    assert (latents.device.type, tuple(latents.shape)) == ("cuda", (2, 3, 8, 8))
