"""A CLIP of transformers as small as can be, with its processor, in the files that transformers reads."""

from pathlib import Path

import torch

SIDE = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 32}


def write_small_pick_score(path: Path) -> Path:
    """Random weights, away from their start, in the folder `path`; words are letters and their ends."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pictures, tokenizer).save_pretrained(path)
    pictures.save_pretrained(path)  # by itself, as older repositories have it
    torch.manual_seed(0)
    text = {"vocab_size": len(words), "eos_token_id": len(words) - 1, "bos_token_id": len(words) - 2, **SIDE}
    vision = {"image_size": 16, "patch_size": 8, **SIDE}
    network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(path)
    return path
