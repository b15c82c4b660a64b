"""A Mask2Former as small as can be, in the files that transformers reads."""

from pathlib import Path

import torch

BACKBONE = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 4}
NETWORK = {
    **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32),
    **dict.fromkeys(("encoder_feedforward_dim", "dim_feedforward"), 16),
    **{"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 12},
}


def write_small_mask2former(path: Path, num_labels: int = 80) -> Path:
    """Random weights that are sure of what they see, in the folder `path`."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

    stages = [f"stage{number}" for number in range(1, 5)]
    backbone = SwinConfig(image_size=32, out_features=stages, **BACKBONE)
    torch.manual_seed(0)
    network = Mask2FormerForUniversalSegmentation(
        Mask2FormerConfig(backbone_config=backbone, num_labels=num_labels, **NETWORK)
    )
    with torch.no_grad():
        network.class_predictor.weight.mul_(60)
    network.save_pretrained(path)
    return path
