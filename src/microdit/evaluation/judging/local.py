"""A judge on this machine: any model of transformers that takes pictures and text and has a template of a chat."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from microdit.encoders.networks import need_transformers, network_folder, network_in, reading
from microdit.evaluation.judging.questions import Question, Reply
from microdit.evaluation.pictures import fingerprint
from microdit.kinds import SettingsError

# Beside config and weights: how pictures, words and a chat become tokens. Newer models have more of these than older.
BESIDE = [
    ["tokenizer.json"],
    ["tokenizer_config.json"],
    ["preprocessor_config.json", "processor_config.json"],
    ["processor_config.json", "preprocessor_config.json"],
    ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"],
    ["generation_config.json", "config.json"],
    ["video_preprocessor_config.json", "config.json"],
]
MOST_TOKENS = 32  # written; the answer is a word
LIKELIEST = 200  # first tokens whose probabilities are told


def judge_folder(weights: str, option: str) -> Path:
    """The folder of such a model, and nothing of its weights read. Raises as `read_network`."""
    need_transformers(weights, option)
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

    return network_folder(KNOWN, weights, option, beside=BESIDE)


class LocalModel:
    """Replies of the model in `weights`, in the precision it is kept in. Raises as `read_network`, and SettingsError
    for one without a template of a chat."""

    def __init__(self, weights: str, option: str, device: torch.device):
        folder = judge_folder(weights, option)
        self.network: Any = network_in(
            folder, "AutoModelForImageTextToText", weights, option, dtype="auto", trust_remote_code=False
        )
        from transformers import AutoProcessor

        self.folder, self.option = folder, f"{option}={weights}"
        with reading(folder, self.option, "a processor that transformers reads"):
            self.processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if getattr(self.processor, "chat_template", None) is None:
            raise SettingsError(
                f"{option}={weights}: that model has no template of a chat, so it is not known how to ask it; choose "
                "one that is trained to answer, often called -Instruct"
            )
        self.name = f"{self.network.config.model_type} {fingerprint(self.network)}"
        self.network.to(device)

    @torch.inference_mode()
    def __call__(self, question: Question) -> Reply:
        pictures = [{"type": "image", "image": Image.fromarray(picture)} for picture in question.pictures]
        chat = [{"role": "user", "content": [*pictures, {"type": "text", "text": question.words}]}]
        with reading(self.folder, self.option, "a processor that takes pictures and a chat"):
            given = self.processor.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            ).to(self.network.device, dtype=self.network.dtype)
        drawn = {"do_sample": True, "temperature": question.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng([self.network.device] if self.network.device.type == "cuda" else []):
            torch.manual_seed(question.vote)
            told = self.network.generate(
                **given,
                **(drawn if question.temperature else {"do_sample": False}),
                max_new_tokens=MOST_TOKENS,
                output_logits=True,
                return_dict_in_generate=True,
            )
        read = given["input_ids"].shape[1]
        written = told.sequences[0, read:]
        return Reply(
            self.processor.decode(written, skip_special_tokens=True),
            False,
            self.first_tokens(told.logits[0][0]) if question.probable else None,
            read,
            len(written),
        )

    def first_tokens(self, logits: torch.Tensor) -> dict[str, float]:
        """The probabilities of the likeliest first tokens, by what they say, before any is drawn."""
        shares = logits.float().softmax(-1)
        likely = shares.topk(min(LIKELIEST, len(shares)))
        first: dict[str, float] = {}
        for share, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
            word = self.processor.decode([token])
            first[word] = first.get(word, 0.0) + share
        return first
