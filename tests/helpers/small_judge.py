"""A LLaVA as small as can be, in the files that transformers reads: a picture and a few words in, words out."""

from pathlib import Path

import torch

WORDS = ("yes", "no", "first", "second", "tie", "Yes", "No", "sorry", ".", "?", "a", "picture", "one", "two")
SPECIAL = ("<unk>", "<pad>", "<end>", "<image>")
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
)
NETWORK = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_small_judge(path: Path, says: tuple[str, str] = ("yes", "no"), template: str | None = TEMPLATE) -> Path:
    """Random weights, in the folder `path`, that answer one of two words, by the pictures, and then end."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS))}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<end>",
        extra_special_tokens=["<image>"],
    )
    side = {"height": 16, "width": 16}
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side)
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **NETWORK)
    text = LlamaConfig(vocab_size=len(vocabulary), eos_token_id=2, pad_token_id=1, bos_token_id=None, **NETWORK)
    network = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=vocabulary["<image>"])
    )
    with torch.no_grad():
        for name, weight in network.model.language_model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight[0] = 0  # so that the first number of a state is that of the word
        embedded, likely = network.get_input_embeddings().weight, network.lm_head.weight
        direction = 100 * likely[0].clone()
        direction[0] = likely[:] = embedded[:, 0] = 0
        likely[vocabulary[says[0]]], likely[vocabulary[says[1]]] = direction, -direction
        for word in says:  # after which nothing comes
            embedded[vocabulary[word], 0] = 100
        likely[vocabulary["<end>"], 0] = 100
    network.save_pretrained(path)
    return path
