"""The text encoder without weights as a model of diffusers, for exported folders."""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor

from microdit.encoders.words import WordsTextEncoder


class MicroDiTTextEncoder(ModelMixin, WordsTextEncoder, ConfigMixin):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Captions as lower-case words, each a fixed vector: tokens of `tokenize` to `length` vectors of `channels`."""

    @register_to_config
    def __init__(self, channels: int, length: int) -> None:
        WordsTextEncoder.__init__(self, channels, length)
        self.register_buffer("positions", self.positions)  # in the file: diffusers opens no model without one

    @property
    def device(self) -> torch.device:
        return self.positions.device

    @property
    def dtype(self) -> torch.dtype:
        return self.positions.dtype

    def forward(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        return self.encode_tokens(tokens)
