"""The released networks and their encoders: what a file of weights is, told from its keys and shapes alone."""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from microdit.checkpoints.archive import check_torch_file
from microdit.checkpoints.export import read_weights
from microdit.checkpoints.reading import CheckpointError, check_numbers, check_tensors, load_weights, told
from microdit.files import refusal_in, size_of_file
from microdit.kinds import SettingsError
from microdit.model.sizes import RELEASED, TINY, XL, layerwise_scaled_dit

# Arguments of layerwise_scaled_dit; what else it needs is in the file.
SIZES: dict[str, dict[str, Any]] = {"xl": {**RELEASED, **XL}, "tiny": {**RELEASED, **TINY}}

# The encoders the networks were trained with; conf/autoencoder/ and conf/text_encoder/ have the same for the command
# line, and a test keeps the two equal.
AUTOENCODERS: dict[int, dict[str, Any]] = {
    channels: {
        "_target_": "microdit.encoders.autoencoder_kl.KLAutoencoder",
        "weights": weights,
        "channels": channels,
        "downscale": 8,
        "scale": scale,
        "shift": 0.0,
        "sigma_data": 0.9,
        "sample": False,
        "dtype": "float32",
    }
    for channels, weights, scale in (
        (4, "stabilityai/stable-diffusion-xl-base-1.0/vae", 0.13025),
        (16, "ostris/vae-kl-f8-d16", 0.2614),
    )
}
TEXT_ENCODER: dict[str, Any] = {
    "_target_": "microdit.encoders.open_clip_text.OpenClipTextEncoder",
    "weights": "hf-hub:apple/DFN5B-CLIP-ViT-H-14-378",
    "channels": 1024,
    "length": 77,
    "dtype": "float32",
}


def pipeline_settings(
    model: Mapping[str, Any],
    autoencoder_weights: str | Path | None = None,
    text_encoder_weights: str | Path | None = None,
) -> dict[str, Any]:
    """Settings of `build_pipeline` for a network (arguments of layerwise_scaled_dit) with the encoders it belongs to.

    The two weights name local folders, or repositories on the Hugging Face hub, in place of the released ones.
    Raises SettingsError for a number of latent channels that no released autoencoder has.
    """
    channels = model["in_channels"]
    if channels not in AUTOENCODERS:
        known = " and ".join(str(known) for known in AUTOENCODERS)
        raise SettingsError(f"there are autoencoders for {known} latent channels, none for {channels}")
    settings = {
        "model": {key: list(v) if isinstance(v, tuple) else v for key, v in model.items()},
        "token_path": {"_target_": "microdit.masking.deferred.Deferred"},
        "objective": {"_target_": "microdit.objectives.edm.EDM"},
        "autoencoder": dict(AUTOENCODERS[channels]),
        "text_encoder": {**TEXT_ENCODER, "channels": model["caption_channels"]},
    }
    for decided_elsewhere in ("in_channels", "caption_channels", "use_patch_mixer"):
        settings["model"].pop(decided_elsewhere)
    return other_encoder_weights(settings, autoencoder_weights, text_encoder_weights)


def other_encoder_weights(
    settings: dict[str, Any], autoencoder_weights: str | Path | None, text_encoder_weights: str | Path | None
) -> dict[str, Any]:
    """`settings` of a pipeline with other weights for its encoders where they are given."""
    changed = dict(settings)
    for name, weights in (("autoencoder", autoencoder_weights), ("text_encoder", text_encoder_weights)):
        if weights is not None:
            changed[name] = {**settings[name], "weights": str(weights)}
    return changed


def read_released(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch file, as float32, without running anything in it.

    Raises CheckpointError when there is no such file, or when it holds anything but tensors by name.
    """
    try:
        if not path.is_dir():
            size_of_file(path)
        if path.suffix == ".safetensors":
            content: Any = read_weights(path)
        else:
            check_torch_file(path)
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of {damaged} is not what was written")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            check_tensors(content)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise CheckpointError(f"{path} is a folder: name the file of weights in it") from error
    except CheckpointError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for what it cannot read
        if refusal := refusal_in(error):
            raise refusal from None
        raise CheckpointError(f"{path} cannot be read as tensors alone ({told(error)}); download it again") from error
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in dict.items(content)
    ):
        holds = ", ".join(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise CheckpointError(f"{path} is no released network, which is a dictionary of tensors: it holds {holds}")
    if sum(value.nbytes for value in dict.values(content)) > 4 * path.stat().st_size:
        raise CheckpointError(f"{path} tells of more numbers than it holds")
    check_numbers(content, str(path))
    # Copied, because the file is mapped into memory: weights must not change when it does.
    return {key: value.to(torch.float32, copy=True) for key, value in dict.items(content)}


def recognise(
    state: Mapping[str, Tensor], source: str, sizes: Mapping[str, Mapping[str, Any]] = SIZES
) -> dict[str, Any]:
    """The network a state dict belongs to, as arguments of layerwise_scaled_dit; its positions are not looked at.

    A network of one of `sizes` is made on the meta device, with the file's channels and resolution, and has to have all
    the file's keys and shapes. Raises CheckpointError, which lists what does not fit the nearest size.
    """
    axes = {"x_embedder.proj.weight": 4, "pos_embed": 3, "y_embedder.y_proj.fc1.weight": 2}
    absent = [
        key for key, count in axes.items() if key not in state or state[key].dim() != count or not state[key].numel()
    ]
    if absent:
        shown = ", ".join(list(state)[:20]) + (", ..." if len(state) > 20 else "")
        raise CheckpointError(
            f"{source} is no released network: it has no {' and no '.join(absent)}. Its {len(state)} keys: {shown}"
        )
    patches, positions, captions = (state[key] for key in axes)
    file = {key: tuple(value.shape) for key, value in state.items()}
    fits = {}
    for size in sizes.values():
        model = {
            **size,
            "in_channels": patches.shape[1],
            "caption_channels": captions.shape[1],
            "input_size": math.isqrt(positions.shape[1]) * patches.shape[2],
            "pos_interp_scale": 1.0,
        }
        try:
            with torch.device("meta"):
                network = layerwise_scaled_dit(**model)
        except (ValueError, RuntimeError, OverflowError) as error:  # sides that no patches divide, or no tensor has
            raise CheckpointError(f"{source} is no released network: {error}") from error
        own = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        if own == file:
            return model
        fits[len(own.items() ^ file.items())] = network
    load_weights(fits[min(fits)], dict(state), f"{source} ({' and '.join(sizes)} were tried; the nearest is shown)")
    raise AssertionError("a network that differs in keys or shapes was loaded")


def position_scale(positions: Float[Tensor, "1 t d"]) -> float:
    """What position indices were divided by (1 at 256 px, 2 at 512 px), read off a table of positions."""
    if positions.shape[1] == 1:
        return 1.0  # a single patch has index 0, whatever it is divided by
    # The table's first frequency is 1, so patch 1 holds sin(1 / scale) and cos(1 / scale) of column 1.
    dim = positions.shape[-1]
    sine, cosine = positions[0, 1, 0].item(), positions[0, 1, dim // 4].item()
    angle = math.atan2(sine, cosine)
    if not angle > 0:
        raise CheckpointError(f"its table of positions holds none: patch 1 is at an angle of {angle}")
    scale = 1 / angle
    nearest = round(2 * scale) / 2  # 1 at 256 px, 2 at 512 px: a file of half precision is off by less than this
    return nearest if abs(scale - nearest) < 0.02 else round(scale, 3)
