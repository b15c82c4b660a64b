"""A CLIP model as small as can be, in the files that open_clip's `local-dir:` reads."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}


def write_small_clip(path: Path, **changes: object) -> Path:
    """Random weights, away from their start, in the folder `path`; `changes` to open_clip's configuration."""
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT} | changes
    (path / "small_clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(path / "small_clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("small_clip")
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    save_file(model.state_dict(), path / "open_clip_model.safetensors")
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return path
