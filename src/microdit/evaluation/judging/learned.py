"""Scores learnt from people's choices between pictures: HPSv2 and PickScore, CLIP models with other weights."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Float
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from microdit.encoders.networks import need_transformers, network_folder, network_in, reading
from microdit.encoders.weights import weights_folder
from microdit.evaluation.judging.prompts import Prompt, mean, of_categories, read_prompts
from microdit.evaluation.judging.questions import Picture
from microdit.evaluation.judging.sets import name_of, pictures_of, sheet, some
from microdit.evaluation.metric import Metric, built_part
from microdit.evaluation.sharing import batches_of
from microdit.evaluation.subject import Count, Sampling, Subject
from microdit.kinds import Copied, SettingsError, Weights
from microdit.pipeline import LatentDiffusion

AT_ONCE, SHOWN = 32, 12
HPS_FILES = ["HPS_v2.1_compressed.pt"]
TOKENIZERS = [["tokenizer.json", "vocab.json"], ["tokenizer_config.json"], ["preprocessor_config.json"]]
LONGEST_TEXT = 77  # tokens that CLIP reads


class Scorer(nn.Module, ABC):
    """A network that scores pictures by their prompts, which settings may choose. `name` is that of its numbers."""

    name: str

    @abstractmethod
    def forward(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        """A score for each picture, higher is better."""


class HpsV2(Scorer):
    """HPSv2.1 (Wu et al. 2023): 100 times the cosine of picture and prompt by a CLIP of open_clip's `architecture`
    (ViT-H-14). `weights`: a folder with HPS_v2.1_compressed.pt, or the repository that has it; read when it is made, as
    tensors alone.

    FileNotFoundError where it cannot be had, SettingsError for an architecture there is not, or weights of another.
    """

    name = "hps_v2"

    def __init__(self, weights: Weights, architecture: str) -> None:
        super().__init__()
        if architecture not in open_clip.list_models():
            raise SettingsError(f"scorer.architecture={architecture} is none of open_clip's; HPSv2 has ViT-H-14")
        file = weights_folder(weights, [HPS_FILES], "scorer.weights") / HPS_FILES[0]
        self.clip: Any = open_clip.create_model(architecture, pretrained=None)
        with reading(file, f"scorer.weights={weights}", f"the weights of {architecture}"):
            self.clip.load_state_dict(torch.load(file, map_location="cpu", weights_only=True)["state_dict"])
        self.clip.eval().requires_grad_(False)
        self.preprocess = image_transform_v2(PreprocessCfg(**self.clip.visual.preprocess_cfg), is_train=False)
        self.tokenizer = open_clip.get_tokenizer(architecture)

    @torch.no_grad()
    def forward(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        device = self.clip.logit_scale.device
        pixels = torch.stack([self.preprocess(Image.fromarray(picture)) for picture in pictures]).to(device)  # type: ignore
        texts = self.tokenizer(list(prompts)).to(device)
        return 100 * cosine_similarity(self.clip.encode_image(pixels), self.clip.encode_text(texts))


class PickScore(Scorer):
    """PickScore (Kirstain et al. 2023): the cosine of picture and prompt by a CLIP of transformers, times its own
    scale. `weights`: a folder or a name on the hub; `processor`: of the CLIP it was made from, which says how pictures
    and texts are taken. Read when it is made; raises as `read_network`."""

    name = "pick_score"

    def __init__(self, weights: Weights, processor: Weights) -> None:
        super().__init__()
        folder = network_folder(["clip"], weights, "scorer.weights")
        need_transformers(processor, "scorer.processor")
        beside = weights_folder(processor, TOKENIZERS, "scorer.processor")
        self.clip: Any = network_in(folder, "CLIPModel", weights, "scorer.weights").float()
        from transformers import CLIPProcessor

        with reading(beside, f"scorer.processor={processor}", "a CLIPProcessor that transformers reads"):
            self.processor: Any = CLIPProcessor.from_pretrained(beside, local_files_only=True)

    @torch.no_grad()
    def forward(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> Float[Tensor, " n"]:
        given = self.processor(
            images=[Image.fromarray(picture) for picture in pictures],
            text=list(prompts),
            padding=True,
            truncation=True,
            max_length=LONGEST_TEXT,
            return_tensors="pt",
        ).to(self.clip.device)
        told = self.clip(**given)
        return self.clip.logit_scale.exp() * cosine_similarity(told.image_embeds, told.text_embeds)


@dataclass(frozen=True)
class LearnedScore(Metric):
    """The mean score of a picture of each prompt in `prompts_file` (PartiPrompts.tsv, or a prompt a line), of each
    category the first `prompts_per_category` (None: all). `scorer`: settings of HpsV2, PickScore or another
    `Scorer`."""

    prompts_file: Copied
    prompts_per_category: Count | None
    scorer: Mapping[str, Any]
    sampling: Sampling

    def ask(self, pipeline: LatentDiffusion) -> None:
        super().ask(pipeline)
        self.prompts()
        built_part(self, "scorer", Scorer)

    def evaluate(self, subject: Subject) -> tuple[dict[str, float], Image.Image]:
        """`NAME`, higher is better; `NAME/CATEGORY`; `NAME/pictures`: of how many. Shown are pictures from the lowest
        score to the highest."""
        prompts = self.prompts()
        # First: what is missing should not be found out after hours of drawing.
        scorer: Any = built_part(self, "scorer", Scorer).to(subject.device).eval()
        texts = [prompt.text for prompt in prompts]
        pictures = pictures_of(subject, name_of(self.prompts_file), texts, self.sampling)
        batches = batches_of(len(texts), AT_ONCE)
        own = [number for place, batch in enumerate(batches) if subject.ranks.has(place) for number in batch]
        decoded = pictures.decoded(own)

        def scored(batch: range) -> list[float]:
            found = scorer(list(itertools.islice(decoded, len(batch))), texts[batch.start : batch.stop]).tolist()
            subject.progress(own.index(batch.start) + len(batch), len(own), "pictures scored")
            return found

        of_batches = subject.each(batches, scored, len(batches), f"{scorer.name}: scoring")
        scores = list(itertools.chain.from_iterable(of_batches))
        if not all(map(math.isfinite, scores)):
            raise SettingsError(f"scorer {scorer.name} gives scores that are no numbers; its weights may be damaged")
        order = sorted(range(len(scores)), key=scores.__getitem__)
        chosen = [order[number] for number in some(len(order), SHOWN)]
        shown = dict(zip(sorted(chosen), pictures.decoded(chosen), strict=True))
        words = [f"{texts[number]}. {scores[number]:.2f}" for number in chosen]
        numbers = {scorer.name: mean(scores), **of_categories(scorer.name, prompts, scores)}
        numbers[f"{scorer.name}/pictures"] = float(len(scores))
        return numbers, sheet([[shown[number]] for number in chosen], words)

    def prompts(self) -> list[Prompt]:
        return read_prompts(Path(self.prompts_file), "prompts_file", self.prompts_per_category)
