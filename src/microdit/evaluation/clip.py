"""CLIP models of open_clip where torchmetrics expects those of transformers, or a feature network."""

from typing import Any

import open_clip
import torch
from jaxtyping import Float, Int, UInt8
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from microdit.encoders.networks import reading
from microdit.encoders.open_clip_text import CHECKPOINT, CONFIG, check_config
from microdit.encoders.weights import weights_folder
from microdit.evaluation.frechet import Features
from microdit.kinds import Weights


class ClipModel(nn.Module):
    """Both towers, frozen, under the names torchmetrics calls them by."""

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.config = None  # torchmetrics looks here for a longest text; the processor cuts texts itself

    def get_image_features(self, pixel_values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        return self.clip.encode_image(pixel_values)

    def get_text_features(self, input_ids: Int[Tensor, "n l"], attention_mask: Tensor) -> Float[Tensor, "n d"]:
        """open_clip's tokens need no mask: the end-of-text token is where the text is read."""
        return self.clip.encode_text(input_ids)


class ClipProcessor:
    """Texts and pictures (uint8, [3, h, w]) to what the towers take, by the model's own rules."""

    def __init__(self, preprocess: Any, tokenizer: Any) -> None:
        self.preprocess, self.tokenizer = preprocess, tokenizer

    def __call__(
        self, images: list[UInt8[Tensor, "3 h w"]] | None = None, text: list[str] | None = None, **_: Any
    ) -> dict[str, Tensor]:
        if images is not None:
            return {"pixel_values": torch.stack([self.preprocess(to_pil_image(image)) for image in images])}
        tokens = self.tokenizer(text)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


class OpenClipFeatures(Features):
    """The image tower of a CLIP model as the feature network of a Frechet distance; read when it is made.

    `weights`: "hf-hub:owner/name" or a local folder. `name` tells the results of different towers apart.
    """

    def __init__(self, weights: Weights, name: str) -> None:
        super().__init__()
        self.model, self.processor = clip_model_and_processor(weights, "features.weights")
        self.name = name
        self.num_features = int(self.model.clip.visual.output_dim)

    @torch.no_grad()
    def forward(self, pictures: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        pixels = self.processor(images=list(pictures.cpu()))["pixel_values"]
        return self.model.get_image_features(pixels.to(pictures.device))


def clip_model_and_processor(weights: str, option: str = "weights") -> tuple[ClipModel, ClipProcessor]:
    """An open_clip model on the CPU, and how it takes pictures and texts. FileNotFoundError if it cannot be had, which
    names the `option` that sets it; SettingsError for files that are none."""
    folder = weights_folder(weights, [CONFIG, CHECKPOINT], option)
    check_config(folder)
    with reading(folder, f"{option}={weights}", "a CLIP that open_clip reads"):
        clip: Any = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
        preprocess = image_transform_v2(PreprocessCfg(**clip.visual.preprocess_cfg), is_train=False)
        return ClipModel(clip), ClipProcessor(preprocess, open_clip.get_tokenizer(f"local-dir:{folder}"))
