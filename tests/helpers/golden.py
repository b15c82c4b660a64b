"""The golden files: a network, what goes in and what comes out, made with the released architecture."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open

from microdit.model.dit import DiT
from microdit.objectives.edm import EDM
from microdit.objectives.objective import Draws, denoise, training_loss
from microdit.sampling.guidance import guided
from microdit.sampling.samplers import heun, noise_schedule

FOLDER = Path(os.environ.get("MICRODIT_GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
FILES = sorted(FOLDER.glob("*.safetensors"))


class Golden:
    """`io` holds inputs and outputs by name, on the device where `network` is."""

    def __init__(self, path: Path, device: str = "cpu"):
        with safe_open(path, framework="pt", device=device) as file:
            self.config = json.loads(file.metadata()["config"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        self.io = {k.removeprefix("io."): v for k, v in tensors.items() if k.startswith("io.")}
        self.network = DiT(**self.config["dit"]).to(device)
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

    def gradients(self, mask_ratio: float) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss, and all gradients in one vector."""
        self.network.zero_grad()
        loss = self.loss(mask_ratio)
        loss.backward()
        return loss.detach(), torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None])

    def sample(self, guidance_scale: float, read_once: bool) -> torch.Tensor:
        edm = self.config["edm"]
        network = guided(self.network, guidance_scale)
        captions = self.network.read_captions(self.io["y"]) if read_once else self.io["y"]

        def denoiser(x, sigma):
            sigmas = torch.full((len(x), 1, 1, 1), sigma, device=x.device)
            return denoise(network, x.float(), sigmas, captions, self.objective).double()

        sigmas = noise_schedule(self.config["num_inference_steps"], edm["sigma_min"], edm["sigma_max"], edm["rho"])
        *_, result = heun(denoiser, self.io["z"], sigmas)
        return result


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float) -> None:
    error = (actual.double() - expected.double()).norm() / expected.double().norm()
    assert error <= relative, f"relative error {error:.2e} > {relative:.0e}"
