"""Trains the embedded autoencoder, `autoencoder=shapes_kl`: diffusers' AutoencoderKL on scenes drawn as it goes.

    python experiments/shapes_autoencoder/train.py --out runs/shapes_kl --minutes 60

What it writes is a folder that KLAutoencoder reads; the package's is src/microdit/pretrained/shapes_kl.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from microdit.data import shapes
from microdit.training.optimizers import orthogonalised

PATCH_PX = 4  # pixels along a side that become channels first: convolutions at full size cost most and learn least here
CROP_PX = 64
BATCH = 16
PEAK_RATE = 1e-3  # AdamW's, of norms and biases
TURN_RATE = 0.04  # Muon's, of convolutions: with it 400 steps get as far as 2,300 with AdamW alone
MOMENTUM = 0.9
EMA_DECAY = 0.999


def autoencoder(channels: int) -> AutoencoderKL:
    """Pictures of 3 x 4 x 4 channels at a quarter of the size, to latents of an eighth."""
    return AutoencoderKL(
        in_channels=3 * PATCH_PX**2,
        out_channels=3 * PATCH_PX**2,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(64, 88),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def crops(seed: int) -> Iterator[np.ndarray]:
    """Endless crops of both domains' training scenes, [64, 64, 3] uint8, varied beyond what the scenes themselves vary:
    objects lie anywhere, are cut off, have other colours and grounds."""
    random = np.random.default_rng([seed, 1])
    number = 0
    while True:
        for domain in shapes.DOMAINS:
            side = int(random.choice([64, 64, 64, 72, 80, 96]))
            picture = shapes.render(shapes.sample("train", domain, number, seed + 1000).scene, side)
            row, column = random.integers(0, side - CROP_PX + 1, 2)
            picture = picture[row : row + CROP_PX, column : column + CROP_PX]
            picture = np.rot90(picture, int(random.integers(4)))
            if random.random() < 0.5:
                picture = picture[:, ::-1]
            if random.random() < 0.25:
                picture = picture[..., random.permutation(3)]
            if random.random() < 0.25:
                gain, lift = random.uniform(0.7, 1.2), random.uniform(-20, 20)
                picture = np.clip(picture * gain + lift, 0, 255).astype(np.uint8)
            yield np.ascontiguousarray(picture)
        number += 1


def batch(source: Iterator[np.ndarray]) -> Tensor:
    """[16, 48, 16, 16] in -1..1."""
    pictures = torch.from_numpy(np.stack([next(source) for _ in range(BATCH)])).permute(0, 3, 1, 2)
    unshuffled = functional.pixel_unshuffle(pictures.float() / 127.5 - 1, PATCH_PX)
    return unshuffled.contiguous(memory_format=torch.channels_last)


def edges(pictures: Tensor) -> tuple[Tensor, Tensor]:
    return pictures.diff(dim=-1), pictures.diff(dim=-2)


def loss(model: Any, pictures: Tensor, kl_weight: float) -> tuple[Tensor, dict[str, float]]:
    """Absolute error of pixels and of their differences, and the latents' divergence from the unit normal."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = model.encode(pictures).latent_dist
        decoded = model.decode(posterior.sample()).sample.float()
    true, made = (functional.pixel_shuffle(each, PATCH_PX) for each in (pictures, decoded))
    pixels = (made - true).abs().mean()
    outlines = torch.stack([(a - b).abs().mean() for a, b in zip(edges(made), edges(true), strict=True)]).sum()
    divergence = posterior.kl().mean() / posterior.mean[0].numel()
    parts = {"pixels": pixels.item(), "outlines": outlines.item(), "divergence": divergence.item()}
    return pixels + 0.5 * outlines + kl_weight * divergence, parts


@torch.no_grad()
def turn(convolutions: list[Tensor], momenta: list[Tensor], rate: float) -> None:
    """A step of Muon for convolutions, as matrices [outputs, inputs x height x width]."""
    for weight, momentum in zip(convolutions, momenta, strict=True):
        assert weight.grad is not None
        momentum.lerp_(weight.grad, 1 - MOMENTUM)
        direction = orthogonalised(weight.grad.lerp(momentum, MOMENTUM).flatten(1))
        outputs, inputs = direction.shape
        weight.sub_(direction.view_as(weight), alpha=rate * max(1.0, outputs / inputs) ** 0.5)
        weight.grad = None


def train(model: Any, kl_weight: float, minutes: float, rate: float) -> tuple[AutoencoderKL, int]:
    """The moving average of the weights after `minutes` of training, and the steps; the learning rate, `rate` of the
    usual one at its peak, follows the clock."""
    model = model.to(memory_format=torch.channels_last)
    average: Any = autoencoder(model.config.latent_channels).requires_grad_(False)
    average.load_state_dict(model.state_dict())
    convolutions = [weight for weight in model.parameters() if weight.ndim == 4]
    momenta = [torch.zeros_like(weight) for weight in convolutions]
    others = [weight for weight in model.parameters() if weight.ndim < 4]
    optimizer = torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    source, started, step, told = crops(torch.initial_seed()), time.monotonic(), 0, 0.0
    while (share := (time.monotonic() - started) / (60 * minutes)) < 1:
        pace = rate * min(1.0, (step + 1) / 100) * max(0.01, math.cos(math.pi / 2 * share))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * pace
        value, parts = loss(model, batch(source), kl_weight)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        turn(convolutions, momenta, TURN_RATE * pace)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        for kept, now in zip(average.parameters(), model.parameters(), strict=True):
            kept.lerp_(now.detach(), 1 - min(EMA_DECAY, step / (step + 10)))
        if time.monotonic() - told > 20:
            told = time.monotonic()
            values = "  ".join(f"{name} {value:.4f}" for name, value in parts.items())
            print(f"{100 * share:5.1f} %  step {step}  {values}", flush=True)
    return average.eval(), step


@torch.no_grad()
def latents_of(model: Any, seed: int, count: int = 1024) -> Tensor:
    """Modes of pictures as they are, without the crops of training."""
    found = []
    for number in range(0, count, 2 * BATCH):
        drawn = [shapes.sample("validation", d, number + i, seed).scene for i in range(BATCH) for d in shapes.DOMAINS]
        pictures = torch.from_numpy(np.stack([shapes.render(scene, CROP_PX) for scene in drawn])).permute(0, 3, 1, 2)
        found.append(model.encode(functional.pixel_unshuffle(pictures / 127.5 - 1, PATCH_PX)).latent_dist.mode())
    return torch.cat(found)


@torch.no_grad()
def without_idle_channels(model: Any, latents: Tensor) -> Any:
    """The same network without the latent channels that training left without use, which carry a hundredth of what the
    others do. Exact but at the picture's edge, where padding was zero; training on mends that."""
    deviations = latents.std((0, 2, 3))
    live = (deviations > 0.05 * deviations.max()).nonzero().flatten().tolist()
    channels, kept = len(deviations), len(live)
    if kept == channels:
        return model
    smaller: Any = autoencoder(kept)
    state = model.state_dict()
    rows = [*live, *(channels + number for number in live)]  # means, then log-variances
    mix, shift = state["quant_conv.weight"][rows, :, 0, 0], state["quant_conv.bias"][rows]
    whole, offset = state["encoder.conv_out.weight"], state["encoder.conv_out.bias"]
    state["encoder.conv_out.weight"] = torch.einsum("ki,ihxy->khxy", mix, whole)
    state["encoder.conv_out.bias"] = mix @ offset + shift
    state["quant_conv.weight"] = torch.eye(2 * kept)[..., None, None]
    state["quant_conv.bias"] = torch.zeros(2 * kept)
    back = state["post_quant_conv.weight"][:, :, 0, 0]
    idle = [number for number in range(channels) if number not in live]
    constant = state["post_quant_conv.bias"] + back[:, idle] @ latents.mean((0, 2, 3))[idle]
    first = state["decoder.conv_in.weight"]
    state["decoder.conv_in.bias"] = state["decoder.conv_in.bias"] + torch.einsum("ochw,c->o", first, constant)
    state["decoder.conv_in.weight"] = torch.einsum("ochw,ck->okhw", first, back[:, live])
    state["post_quant_conv.weight"] = torch.eye(kept)[..., None, None]
    state["post_quant_conv.bias"] = torch.zeros(kept)
    smaller.load_state_dict(state)
    return smaller


@torch.no_grad()
def with_unit_latents(model: Any, latents: Tensor) -> Any:
    """The same network with latents of mean 0 and deviation 1 in every channel; exact."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    outwards, inwards = model.quant_conv, model.post_quant_conv
    count = len(mean)
    outwards.weight[:count] /= deviation[:, None, None, None]
    outwards.bias[:count] = (outwards.bias[:count] - mean) / deviation
    outwards.bias[count:] -= 2 * deviation.log()  # of log-variances
    inwards.bias += inwards.weight[:, :, 0, 0] @ mean
    inwards.weight *= deviation[None, :, None, None]
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets config.json and the weights")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--channels", type=int, default=8, help="of the latents, before those without use are left out")
    parser.add_argument("--kl-weight", type=float, default=1e-3)
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rates")
    parser.add_argument("--start", type=Path, help="a folder of such weights to go on from, instead of chance")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    model: Any = autoencoder(given.channels)
    if given.start is not None:
        model = AutoencoderKL.from_pretrained(given.start, low_cpu_mem_usage=False).eval()
        model = without_idle_channels(model, latents_of(model, given.seed))
    model, steps = train(model, given.kl_weight, given.minutes, given.rate)
    model = with_unit_latents(model, latents_of(model, given.seed))
    model.register_to_config(scaling_factor=1.0, shift_factor=0.0)
    record = {**vars(given), "steps": steps, "pictures": steps * BATCH, "channels": model.config.latent_channels}
    model.half().save_pretrained(given.out, safe_serialization=True)
    (given.out / "training.json").write_text(json.dumps(record, indent=2, default=lambda path: path.name) + "\n")
    print(f"wrote {given.out}: {record}")


if __name__ == "__main__":
    main()
