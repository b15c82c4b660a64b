"""Language models and text towers as text encoders, through transformers: what a layer of theirs makes of a caption."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from microdit.encoders.networks import need_transformers, network_folder, network_in, reading
from microdit.encoders.protocols import TextEncoder
from microdit.encoders.weights import DType, FrozenModule, weights_folder
from microdit.files import read_json, size_of_file
from microdit.kinds import Limits, SettingsError, Weights, Width

PADDING = -1  # a token id that no vocabulary has
TOKENIZER = [["tokenizer.json"], ["tokenizer_config.json"]]
LARGEST_TOKENIZER = 1 << 27  # bytes; Gemma's has 34 million


class Architecture(NamedTuple):
    """transformers' class for the text part of a model, its arguments, and whether it was trained to read padding."""

    kind: str
    arguments: dict[str, Any]
    reads_padding: bool = False


# By the model_type of config.json. SigLIP 2 of a fixed resolution calls itself siglip.
ARCHITECTURES = {
    "qwen3": Architecture("Qwen3Model", {}),
    "t5gemma": Architecture("T5GemmaEncoderModel", {"is_encoder_decoder": False}),
    "siglip": Architecture("SiglipTextModel", {}, reads_padding=True),
    "siglip2": Architecture("Siglip2TextModel", {}, reads_padding=True),
}


class CaptionLayers(nn.Module):
    """The text part of a model, up to `layer`: -1 is what its last norm gives, others what goes out of so many blocks.

    `padding`: the token that stands for padding where the model reads it, None where it does not.
    """

    def __init__(self, network: nn.Module, layer: int, padding: int | None) -> None:
        super().__init__()
        self.network, self.layer, self.padding = network, layer, padding

    def forward(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        present = tokens != PADDING
        told = self.network(
            input_ids=tokens.masked_fill(~present, self.padding or 0),
            attention_mask=present.long() if self.padding is None else None,
            output_hidden_states=self.layer != -1,
        )
        hidden = told.last_hidden_state if self.layer == -1 else told.hidden_states[self.layer]
        return hidden.masked_fill(~present[..., None], 0)


class TransformersTextEncoder(TextEncoder):
    """All positions of a caption in one layer of a language model or text tower; padding, behind them, is zeros.

    `weights`: a local folder or "owner/name" on the Hugging Face hub, of a model_type in ARCHITECTURES; read on first
    use, or by `load()`. Decoders and image towers are left out. `channels` must agree with the weights; captions are
    cut to `length` tokens. `layer`: -1 what the last norm gives, 0 the token embeddings, k > 0 or below -1 what goes
    out of a block, not normalised. `lower_case`: captions are, as SigLIP 2 was trained. SettingsError for a length of
    less than 2. An empty caption may have no token: it is then the caption of zeros, as guidance has it.
    """

    masks_padding = True
    weights: str
    tokenizer: Any

    def __init__(
        self,
        weights: Weights,
        channels: Width,
        length: Annotated[int, Limits(2, 1 << 15)],
        layer: Annotated[int, Limits(-1000, 1000)] = -1,
        lower_case: bool = False,
        dtype: DType = "float32",
    ) -> None:
        super().__init__()
        if length < 2:
            raise SettingsError(f"text_encoder.length leaves room for a word and the end of the text; got {length}")
        self.weights, self.channels, self.length = weights, channels, length
        self.layer, self.lower_case = layer, lower_case
        self.frozen = FrozenModule(partial(read_caption_layers, weights, channels, length, layer), dtype)
        self.tokenizer = None

    def load(self) -> CaptionLayers:
        """The model, read now if it was not yet; FileNotFoundError or SettingsError as `read_caption_layers`."""
        return cast(CaptionLayers, self.frozen.module())

    def tokenize(self, captions: list[str]) -> Int[Tensor, "n l"]:
        """Token ids, PADDING behind them. What a caption has of a special token's name are letters as others."""
        texts = [caption.lower() for caption in captions] if self.lower_case else captions
        tokens = torch.full((len(captions), self.length), PADDING)
        for row, encoded in zip(tokens, self._tokenizer().encode_batch(texts), strict=True):
            row[: len(encoded.ids)] = torch.tensor(encoded.ids, dtype=torch.long)
        return tokens

    @torch.no_grad()
    def encode_tokens(self, tokens: Int[Tensor, "n l"]) -> Float[Tensor, "n l d"]:
        layers = self.load()
        with torch.autocast(self.frozen.device.type, enabled=False):
            return layers(tokens.to(self.frozen.device)).float()

    def lengths(self, tokens: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        """Positions that are no padding; one for a caption without any, whose place is stored too."""
        return (tokens != PADDING).sum(dim=1).clamp(min=1)

    def _tokenizer(self) -> Any:
        # Apart from the model, so that the workers of a data loader can tokenize without its gigabytes.
        if self.tokenizer is None:
            tokenizer, _ = read_tokenizer(self.weights)
            tokenizer.no_padding()
            tokenizer.enable_truncation(self.length)
            tokenizer.encode_special_tokens = True  # the name of one in a caption is not one
            self.tokenizer = tokenizer
        return self.tokenizer


def read_tokenizer(weights: str) -> tuple[Any, int | None]:
    """The tokenizer of folder or repository `weights`, and its token for padding, None where it names none.

    FileNotFoundError where it cannot be had, SettingsError where it cannot be read.
    """
    need_transformers(weights, "text_encoder.weights")
    folder = weights_folder(
        weights, TOKENIZER, "text_encoder.weights", advise=[["config.json"], ["model*.safetensors"], *TOKENIZER]
    )
    from tokenizers import Tokenizer

    path = folder / TOKENIZER[0][0]
    if (size := size_of_file(path)) > LARGEST_TOKENIZER:
        raise SettingsError(f"text_encoder.weights={weights}: {path} has {size:,} bytes, which no tokenizer has")
    with reading(folder, f"text_encoder.weights={weights}", "a tokenizer"):
        tokenizer = Tokenizer.from_file(str(path))
    named = read_json(folder / TOKENIZER[1][0], "download it again", LARGEST_TOKENIZER).get("pad_token")
    name = named.get("content") if isinstance(named, dict) else named
    return tokenizer, tokenizer.token_to_id(name) if isinstance(name, str) else None


def read_caption_layers(weights: str, channels: int, length: int, layer: int) -> CaptionLayers:
    """The text part of the model in folder or repository `weights`, on the CPU in float32.

    FileNotFoundError if the weights cannot be had; SettingsError if they are not those of such a model as declared.
    """
    option = "text_encoder.weights"
    folder = network_folder(tuple(ARCHITECTURES), weights, option, beside=TOKENIZER)
    told = read_json(folder / "config.json", "download it again")
    if "quantization_config" in told:
        raise SettingsError(f"{option}={weights}: {folder} holds a quantised copy; take the model that it was made of")
    kind, arguments, reads_padding = ARCHITECTURES[str(told["model_type"])]
    network = network_in(folder, kind, weights, option, use_safetensors=True, **arguments).float()
    network.config.use_cache = False
    config = getattr(network.config, "encoder", network.config)
    found, blocks = config.hidden_size, config.num_hidden_layers
    if found != channels:
        raise SettingsError(
            f"{option}={weights}: the model in {folder} is {found} channels wide, but the configuration declares "
            f"{channels}. Choose the weights that belong to this text encoder, or set text_encoder.channels={found}"
        )
    if length > config.max_position_embeddings:
        raise SettingsError(
            f"{option}={weights}: the model in {folder} reads {config.max_position_embeddings} tokens, and "
            f"text_encoder.length is {length}; set text_encoder.length={config.max_position_embeddings} or less"
        )
    if not -blocks - 1 <= layer <= blocks:
        raise SettingsError(
            f"text_encoder.layer={layer}: the model in {folder} has {blocks} blocks; -1 is the last with its norm, 0 "
            "the token embeddings"
        )
    padding = read_tokenizer(weights)[1] if reads_padding else None
    if reads_padding and padding is None:
        raise SettingsError(f"{option}={weights}: {TOKENIZER[1][0]} in {folder} names no pad_token, which {kind} reads")
    return CaptionLayers(network, layer, padding)
