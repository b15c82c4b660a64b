"""The text towers of CLIP models, through open_clip."""

from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from microdit.encoders.protocols import TextEncoder
from microdit.encoders.weights import DType, FrozenModule, weights_folder
from microdit.files import read_json
from microdit.kinds import Weights, Width

CONFIG = ["open_clip_config.json"]
CHECKPOINT = ["open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"]


class TextTower(nn.Module):
    """The layers of a CLIP model that turn tokens into embeddings, up to and including the final norm."""

    attn_mask: Tensor

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.token_embedding, self.positional_embedding = text.token_embedding, text.positional_embedding
        self.transformer, self.ln_final = text.transformer, text.ln_final
        self.register_buffer("attn_mask", text.attn_mask, persistent=False)

    def forward(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        x = self.token_embedding(tokens) + self.positional_embedding
        return self.ln_final(self.transformer(x, attn_mask=self.attn_mask))


class OpenClipTextEncoder(TextEncoder):
    """All positions of an open_clip text tower after its final norm, before the projection; causal, padding included.

    `weights`: "hf-hub:owner/name", or a local folder as open_clip's `local-dir:` reads it; read on first use, or by
    `load()`. `channels` and `length` must agree with the weights. The image tower is dropped.
    """

    weights: str
    tokenizer: Any

    def __init__(self, weights: Weights, channels: Width = 1024, length: Width = 77, dtype: DType = "float32") -> None:
        super().__init__()
        self.weights, self.channels, self.length = weights, channels, length
        self.frozen = FrozenModule(partial(read_text_tower, weights, channels, length), dtype)
        self.tokenizer = None

    def load(self) -> TextTower:
        """The text tower, read now if it was not yet; FileNotFoundError or ValueError as `read_text_tower`."""
        return cast(TextTower, self.frozen.module())

    def tokenize(self, captions: list[str]) -> Int[Tensor, "n l"]:
        return self._tokenizer()(captions, context_length=self.length)

    @torch.no_grad()
    def encode_tokens(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        tower = self.load()
        with torch.autocast(self.frozen.device.type, enabled=False):
            return tower(tokens.to(self.frozen.device)).float()

    def lengths(self, tokens: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        return (tokens == self._tokenizer().eot_token_id).int().argmax(dim=1) + 1

    def _tokenizer(self) -> Any:
        # Apart from the tower, so that the workers of a data loader can tokenize without its gigabytes.
        if self.tokenizer is None:
            from open_clip import get_tokenizer

            folder = weights_folder(self.weights, [CONFIG], "text_encoder.weights", advise=[CONFIG, CHECKPOINT])
            check_config(folder)
            self.tokenizer = get_tokenizer(f"local-dir:{folder}")
            if not hasattr(self.tokenizer, "eot_token_id"):
                raise ValueError(
                    f"text_encoder.weights={self.weights} asks for a {type(self.tokenizer).__name__}; "
                    "OpenClipTextEncoder knows the end of a text only in CLIP's own tokenizer"
                )
        return self.tokenizer


# What other libraries would be asked to open, with arguments of the file's choice.
ELSEWHERE = ("hf_tokenizer_name", "tokenizer_kwargs", "hf_model_name", "hf_model_config", "timm_model_name")


def check_config(folder: Path) -> None:
    """Raises ValueError where open_clip_config.json would have open_clip load something by a name in it."""
    found = read_json(folder / CONFIG[0], "download it again").get("model_cfg")
    towers = [found.get(name) for name in ("text_cfg", "vision_cfg")] if isinstance(found, dict) else []
    for tower in (each for each in towers if isinstance(each, dict)):
        if named := [name for name in ELSEWHERE if tower.get(name)]:
            raise ValueError(
                f"{folder / CONFIG[0]} has {named[0]}={tower[named[0]]}: only open_clip's own towers and tokenizer are "
                "read, because what a file names elsewhere could be a program"
            )


def read_text_tower(weights: str, channels: int, length: int) -> TextTower:
    """The text tower in folder or repository `weights`, on the CPU in float32.

    FileNotFoundError if the weights cannot be had; ValueError if they are not a causal text tower as declared.
    """
    folder = weights_folder(weights, [CONFIG, CHECKPOINT], "text_encoder.weights")
    check_config(folder)
    import open_clip

    try:
        model: Any = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError, UnpicklingError) as error:
        raise ValueError(f"text_encoder.weights={weights}: open_clip cannot read {folder} ({error})") from error
    text: Any = getattr(model, "text", model)
    if getattr(text, "attn_mask", None) is None or getattr(text, "cls_emb", None) is not None:
        raise ValueError(f"text_encoder.weights={weights}: {type(text).__name__} is not a causal CLIP text tower")
    found = {"channels": text.ln_final.weight.shape[0], "length": text.positional_embedding.shape[0]}
    declared = {"channels": channels, "length": length}
    if found != declared:
        raise ValueError(
            f"text_encoder.weights={weights}: the text tower in {folder} has {found['channels']} channels and "
            f"{found['length']} positions, but the configuration declares {channels} and {length}. Choose the weights "
            f"that belong to this text encoder, or set text_encoder.channels={found['channels']} "
            f"text_encoder.length={found['length']}"
        )
    return TextTower(text)
