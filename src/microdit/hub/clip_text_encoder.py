"""CLIP's text tower, through open_clip, as a model of diffusers, for exported folders."""

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor

from microdit.encoders.open_clip_text import TextTower


class MicroDiTTextEncoder(ModelMixin, TextTower, ConfigMixin):
    """All positions of an open_clip text tower after its final norm; wants the package open_clip_torch.

    `embed_dim`, `text_cfg`, `quick_gelu`: as open_clip's configuration of the model has them.
    """

    @register_to_config
    def __init__(self, embed_dim: int, text_cfg: dict[str, Any], quick_gelu: bool = False) -> None:
        from open_clip.model import _build_text_tower  # pyright: ignore[reportPrivateUsage] - its CLIP's own
        from open_clip.tokenizer import SimpleTokenizer

        tower: Any = _build_text_tower(embed_dim, text_cfg, quick_gelu)  # pyright: ignore[reportArgumentType]
        TextTower.__init__(self, tower)
        self.tokenizer = SimpleTokenizer(context_length=tower.context_length)

    def tokenize(self, captions: list[str]) -> Int[Tensor, "n l"]:
        return self.tokenizer(captions)

    def forward(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        return TextTower.forward(self, tokens)
