"""Small random language models of transformers' own classes, with a tokenizer of words, as their repositories are."""

import json
from pathlib import Path
from typing import Any

import torch

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>"]
WORDS = [*SPECIAL, "a", "red", "green", "blue", "ball", "box", "cube", "above", "the", "of", "and", "many", "big"]
SIDE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
GROUPED = {**SIDE, "vocab_size": len(WORDS), "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 512}
CHANNELS = 16


def small_model(kind: str) -> Any:
    """The whole model, as it is published: with its head, decoder or image tower."""
    import transformers as t

    if kind == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**GROUPED, pad_token_id=0))
    if kind == "t5gemma":
        side = t.T5GemmaModuleConfig(**GROUPED, sliding_window=16, query_pre_attn_scalar=8, pad_token_id=0)
        return t.T5GemmaForConditionalGeneration(t.T5GemmaConfig(encoder=side, decoder=side, vocab_size=len(WORDS)))
    text = {**SIDE, "vocab_size": len(WORDS), "max_position_embeddings": 12, "pad_token_id": 0, "projection_size": 16}
    vision = {**SIDE, "image_size": 16, "patch_size": 8}
    return t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))


def write_small_language_model(path: Path, kind: str) -> Path:
    """Random weights, away from their start, in the folder `path`; captions end with <eos> but for qwen3's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    torch.manual_seed(0)
    model = small_model(kind)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(path)
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<bos>"])
    if kind != "qwen3":
        tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<pad>", "eos_token": "<eos>"}))
    return path
