"""The two networks that GenEval asks: Mask2Former for objects, and a CLIP model for the colour of each.

Mask2Former is run as mmdet runs it, whose numbers are published, and not by transformers' own processor: pictures are
resized without antialiasing, and instances may overlap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from microdit.build import SettingsError
from microdit.encoders.networks import read_network
from microdit.evaluation.clip import clip_model_and_processor
from microdit.evaluation.geneval.prompts import CLASSES, COLOURS
from microdit.evaluation.geneval.rules import SUREST, Colours, Detection
from microdit.evaluation.pictures import fingerprint

PROTOCOL = "geneval 1"  # what was judged by another is judged anew
SHORTEST_PX, LONGEST_PX, DIVISOR = 800, 1333, 32
MEAN, DEVIATION = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of values in 0..255
MOST_PAIRS = 100  # of query and class
TEMPLATES = ("a photo of a {{}} {name}", "a photo of a {{}}-colored {name}", "a photo of a {{}} object")
AROUND = "#999"  # the colour of all that is not the object
CROPS_AT_ONCE = 16

Picture = UInt8[np.ndarray, "h w 3"]


@dataclass(frozen=True)
class Judge:
    """Who sees objects in a picture, who names the colours of some of them, and a name for both and their weights."""

    seen_in: Callable[[Picture], list[Detection]]
    colours_in: Callable[[Picture], Colours]
    name: str


def read_judge(detector_weights: str, clip_weights: str, option: str, device: torch.device) -> Judge:
    """The judge whose weights are in folders or repositories; `option` is where both are set, for messages.

    SettingsError where transformers is missing or the detector is another, FileNotFoundError for weights that cannot be
    had: it says which, from where, and how to point to a folder.
    """
    detector = read_detector(detector_weights, f"{option}.detector_weights").to(device)
    model, processor = clip_model_and_processor(clip_weights, f"{option}.clip_weights")
    namer = ColourNamer(model.clip.to(device), processor.preprocess, processor.tokenizer, device)
    return Judge(
        lambda picture: objects_in(picture, detector),
        lambda picture: lambda objects, name: namer(picture, objects, name),
        f"{PROTOCOL}, detector {fingerprint(detector)}, CLIP {fingerprint(namer.clip)}",
    )


def read_detector(weights: str, option: str) -> Any:
    """A Mask2Former of transformers for the 80 classes of COCO. Raises as `read_network`, and SettingsError for one
    that knows others."""
    network = read_network("Mask2FormerForUniversalSegmentation", "mask2former", weights, option, backbone="swin")
    if network.config.num_labels != len(CLASSES):
        raise SettingsError(
            f"{option}={weights}: that detector knows {network.config.num_labels} classes, and GenEval asks for the "
            f"{len(CLASSES)} of COCO instances: facebook/mask2former-swin-small-coco-instance"
        )
    return network


@torch.inference_mode()
def objects_in(picture: Picture, detector: Any) -> list[Detection]:
    """All objects with a score above the least that counts for any prompt."""
    height, width = picture.shape[:2]
    pixels, resized = prepared(picture)
    told = detector(pixel_values=pixels.to(detector.device))
    padded = (pixels.shape[-2], pixels.shape[-1])
    return instances(told.class_queries_logits[0], told.masks_queries_logits[0], padded, resized, (height, width))


def prepared(picture: Picture) -> tuple[Float[Tensor, "1 3 H W"], tuple[int, int]]:
    """What the detector takes, padded below and to the right, and the height and width of the picture in it."""
    sides = picture.shape[:2]
    factor = min(LONGEST_PX / max(sides), SHORTEST_PX / min(sides))
    height, width = (max(1, int(side * factor + 0.5)) for side in sides)
    pixels = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float()
    pixels = interpolate(pixels, (height, width), mode="bilinear", align_corners=False).round()
    pixels = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(DEVIATION).view(3, 1, 1)
    return pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR)), (height, width)


def instances(
    classes: Float[Tensor, "queries 81"],
    masks: Float[Tensor, "queries h w"],
    padded: tuple[int, int],
    resized: tuple[int, int],
    size: tuple[int, int],
) -> list[Detection]:
    """The objects that the queries' logits tell of (the last class is none), in a picture of `size`, height and width.

    A query may be an object of several classes. A mask is where its logit is above 0 at the picture's size; its score
    is that of the class times the mean probability inside the mask.
    """
    scores = classes.softmax(-1)[:, :-1].flatten()
    found = []
    for score, pair in zip(*scores.topk(min(MOST_PAIRS, len(scores))), strict=True):
        if score <= SUREST:  # a mask can only make it less
            break
        query, number = divmod(int(pair), len(CLASSES))
        logits = interpolate(masks[query][None, None].float(), padded, mode="bilinear", align_corners=False)
        logits = logits[..., : resized[0], : resized[1]]
        logits = interpolate(logits, size, mode="bilinear", align_corners=False)[0, 0]
        inside = logits > 0
        sure = float(score * logits[inside].sigmoid().mean()) if inside.any() else 0.0
        if sure > SUREST:
            mask = inside.cpu().numpy()
            rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            found.append(Detection(CLASSES[number], sure, tuple(map(float, box)), mask))  # type: ignore[arg-type]
    return found


class ColourNamer:
    """Which of GenEval's ten colours an object has, by a CLIP model: zero-shot, on its pixels alone."""

    def __init__(self, clip: Any, preprocess: Any, tokenizer: Any, device: torch.device) -> None:
        self.clip, self.preprocess, self.tokenizer, self.device = clip, preprocess, tokenizer, device
        self.classifiers: dict[str, Float[Tensor, "d colours"]] = {}  # by class, made when it is first asked for

    @torch.inference_mode()
    def __call__(self, picture: Picture, objects: Sequence[Detection], name: str) -> list[str]:
        """The colour of each of some objects of a class."""
        if name not in self.classifiers:
            templates = [template.format(name=name) for template in TEMPLATES]
            self.classifiers[name] = open_clip.build_zero_shot_classifier(
                self.clip, self.tokenizer, COLOURS, templates, device=self.device
            )
        colours = []
        for start in range(0, len(objects), CROPS_AT_ONCE):
            crops = [self.preprocess(cut_out(picture, one)) for one in objects[start : start + CROPS_AT_ONCE]]
            features = self.clip.encode_image(torch.stack(crops).to(self.device), normalize=True)
            colours += [COLOURS[best] for best in (features @ self.classifiers[name]).argmax(1).tolist()]
        return colours


def cut_out(picture: Picture, thing: Detection) -> Image.Image:
    """An object's box, all of it that is not the object in one grey."""
    whole = Image.fromarray(picture)
    if thing.mask is not None:
        whole = Image.composite(whole, Image.new("RGB", whole.size, AROUND), Image.fromarray(thing.mask))
    return whole.crop(tuple(map(round, thing.box)))  # type: ignore[arg-type]
