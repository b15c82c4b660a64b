"""Every test runs with the shapes in the signatures of the network, the mathematics and the pipeline checked."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from jaxtyping import install_import_hook

# Before anything imports them: no windows, no uploads.
os.environ["MPLBACKEND"] = "Agg"
os.environ["WANDB_MODE"] = "disabled"
# Kernels for GPUs run in Triton's interpreter where there is no GPU.
if not os.path.exists("/dev/nvidiactl"):
    os.environ["TRITON_INTERPRET"] = "1"

# Also before the packages are imported. An int is welcome where a float is asked for, as everywhere in Python.
# Not where networks are compiled: the compiler cannot look into the checks, so these tests have processes of their own.
CHECKED = not os.environ.get("MICRODIT_TESTS_UNCHECKED")
if CHECKED:
    install_import_hook(
        ["microdit.model", "microdit.masking", "microdit.objectives", "microdit.sampling", "microdit.pipeline"],
        "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
    )

import pytest  # noqa: E402
import torch  # noqa: E402

from microdit.model.dit import DiT  # noqa: E402
from microdit.model.sizes import layerwise_scaled_dit  # noqa: E402

pytest_plugins = ("run_fixtures", "evaluation_fixtures")

torch.set_num_threads(min(2, torch.get_num_threads()))


@functools.cache
def ran_unchecked(file: Path) -> subprocess.CompletedProcess[str]:
    """All tests of a file that are marked `compiles`, run in a process without checks of shapes."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "compiles", str(file)]
    environment = {**os.environ, "MICRODIT_TESTS_UNCHECKED": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is marked `compiles` runs with the others of its file in another process."""
    if not CHECKED or pyfuncitem.get_closest_marker("compiles") is None:
        return None
    done = ran_unchecked(pyfuncitem.path)
    name = f"{pyfuncitem.path.name}::{pyfuncitem.name}"
    assert done.returncode == 0 or (name not in done.stdout and "passed" in done.stdout), done.stdout + done.stderr
    return True


WHOLE_RUNS = ("training", "cli", "notebooks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests first, so that no core waits at the end while another works on the last of them."""
    items.sort(key=lambda item: item.path.parent.name not in WHOLE_RUNS)


SMALL = {
    "input_size": 8,
    "patch_size": 2,
    "in_channels": 3,
    "dim": 32,
    "depth": 4,
    "head_dim": 8,
    "multiple_of": 16,
    "caption_channels": 16,
    "pos_interp_scale": 1.0,
    "norm_eps": 1e-6,
    "depth_init": True,
    "attention_ratios": (0.5, 1.0),
    "ffn_ratios": (0.5, 4.0),
    "use_patch_mixer": True,
    "patch_mixer_depth": 2,
    "patch_mixer_dim": 16,
    "patch_mixer_qkv_ratio": 1.0,
    "patch_mixer_mlp_ratio": 4.0,
    "use_bias": False,
    "num_experts": 4,
    "expert_capacity": 2.0,
    "experts_every_n": 2,
}


@pytest.fixture(scope="session")
def small_settings() -> dict:
    """Arguments of layerwise_scaled_dit for a network of 16 patches with everything the large ones have."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def pipeline_settings(small_settings) -> dict:
    """What build_pipeline needs for such a network on 8 px pictures."""
    given_by_others = ("in_channels", "caption_channels", "use_patch_mixer")
    model = {k: list(v) if isinstance(v, tuple) else v for k, v in small_settings.items() if k not in given_by_others}
    return {
        "model": model,
        "token_path": {"_target_": "microdit.masking.deferred.Deferred"},
        "objective": {"_target_": "microdit.objectives.edm.EDM"},
        "autoencoder": {"_target_": "microdit.encoders.pixel.PixelAutoencoder", "sigma_data": 0.5},
        "text_encoder": {"_target_": "microdit.encoders.words.WordsTextEncoder", "channels": 16, "length": 6},
    }


@pytest.fixture(scope="session")
def wake() -> Callable[[torch.nn.Module], None]:
    """Moves every weight away from its start, where gates and output are zero and would hide what is tested."""

    def move(network: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))

    return move


@pytest.fixture(scope="session")
def small_network(wake) -> Callable[..., DiT]:
    """Makes a small network with weights in which everything matters; `fresh=True` leaves the initial ones."""

    def make(fresh: bool = False, **overrides) -> DiT:
        torch.manual_seed(0)
        network = layerwise_scaled_dit(**{**SMALL, **overrides})
        if not fresh:
            wake(network)
        return network

    return make


@pytest.fixture(scope="session")
def inputs() -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Latents, noise labels and captions for the small network."""

    def draw(n: int = 2, height: int = 8, width: int = 8, length: int = 5, channels: int = 3):
        generator = torch.Generator().manual_seed(2)

        def randn(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        return randn(n, channels, height, width), randn(n), randn(n, length, 16)

    return draw
