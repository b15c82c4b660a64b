"""The two networks: small random ones of the real classes, and what is made of their answers, by hand."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from small_mask2former import write_small_mask2former
from torch.nn.functional import interpolate

from microdit.build import SettingsError
from microdit.evaluation.clip import clip_model_and_processor
from microdit.evaluation.geneval.networks import (
    ColourNamer,
    cut_out,
    instances,
    objects_in,
    prepared,
    read_detector,
    read_judge,
)
from microdit.evaluation.geneval.prompts import CLASSES, COLOURS
from microdit.evaluation.geneval.rules import Detection

DOG, CAT, MOUSE = (CLASSES.index(name) for name in ("dog", "cat", "computer mouse"))
OPTION = "metrics.geneval.detector_weights"


@pytest.fixture(scope="module")
def detector(detector_weights):
    return read_detector(detector_weights, OPTION)


@pytest.fixture(scope="module")
def namer(clip_weights) -> ColourNamer:
    model, processor = clip_model_and_processor(clip_weights)
    return ColourNamer(model.clip, processor.preprocess, processor.tokenizer, torch.device("cpu"))


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def logits(*shares: dict[int, float]) -> torch.Tensor:
    """Class logits of queries that are so sure of these classes, and else of nothing."""
    rows = torch.full((len(shares), len(CLASSES) + 1), 1e-9)
    for row, sure in zip(rows, shares, strict=True):
        row[-1] = 1 - sum(sure.values())
        for number, share in sure.items():
            row[number] = share
    return rows.log()


def mask(rows: slice, columns: slice, inside: float = 20.0) -> torch.Tensor:
    """A mask's logits at 20 x 20, a quarter of a padded picture of 80 px."""
    drawn = torch.full((20, 20), -20.0)
    drawn[rows, columns] = inside
    return drawn


def found(classes: torch.Tensor, *masks: torch.Tensor) -> list[Detection]:
    return instances(classes, torch.stack(masks), (80, 80), (80, 80), (80, 80))


def test_instances_that_overlap_all_stay_with_whole_masks():
    large, small = mask(slice(2, 18), slice(2, 18)), mask(slice(5, 10), slice(5, 10))
    dog, cat = found(logits({DOG: 0.95}, {CAT: 0.6}), large, small)
    assert (dog.name, cat.name) == ("dog", "cat")
    assert dog.mask is not None
    assert cat.mask is not None
    assert (dog.mask & cat.mask).sum() == cat.mask.sum() > 0
    twice = found(logits({DOG: 0.95}, {DOG: 0.6}), large, large)
    assert [one.name for one in twice] == ["dog", "dog"]


def test_a_box_is_that_of_the_mask_at_the_size_of_the_picture():
    (one,) = found(logits({DOG: 0.95}), mask(slice(5, 10), slice(2, 18)))
    assert one.box == (8, 20, 72, 40)
    assert one.mask is not None
    assert one.mask.shape == (80, 80)
    # Corners are rounded off by the interpolation, a pixel each.
    assert (np.argwhere(one.mask).min(0).tolist(), np.argwhere(one.mask).max(0).tolist()) == ([20, 8], [39, 71])
    assert one.mask.sum() == 20 * 64 - 4


def test_what_the_detector_saw_of_the_padding_is_cut_off_before_masks_are_scaled():
    classes, masks = logits({DOG: 0.95}), mask(slice(0, 20), slice(0, 20))[None]
    (one,) = instances(classes, masks, (80, 80), (60, 80), (120, 160))
    assert one.box == (0, 0, 160, 120)
    below = mask(slice(16, 20), slice(0, 20))[None]  # rows 64 to 80 of the padded picture, which ends at 60
    assert instances(classes, below, (80, 80), (60, 80), (120, 160)) == []


def test_a_score_is_the_class_times_the_mean_probability_inside_the_mask():
    (one,) = found(logits({DOG: 0.8}), torch.full((20, 20), 1.0))
    assert one.score == pytest.approx(0.8 * 1 / (1 + np.exp(-1)), rel=1e-5)
    assert found(logits({DOG: 0.8}), torch.full((20, 20), -1.0)) == []  # no mask at all
    assert found(logits({DOG: 0.55}), torch.full((20, 20), 0.1)) == []  # 0.55 * 0.52 is below 0.3
    assert found(logits({DOG: 0.29}), torch.full((20, 20), 20.0)) == []


def test_a_query_may_be_an_object_of_several_classes():
    both = found(logits({DOG: 0.5, CAT: 0.4}), mask(slice(2, 9), slice(2, 9)))
    assert [one.name for one in both] == ["dog", "cat"]


def test_classes_go_by_their_place_in_coco():
    (one,) = found(logits({MOUSE: 0.9}), mask(slice(2, 9), slice(2, 9)))
    assert (MOUSE, one.name) == (64, "computer mouse")


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((256, 256), (800, 800), (800, 800)),
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 512), (1333, 667), (1344, 672)),  # the longer side decides
        ((300, 400), (800, 1067), (800, 1088)),
        ((2000, 1000), (1333, 667), (1344, 672)),
        ((1, 4096), (1, 1333), (32, 1344)),
    ],
)
def test_the_shorter_side_becomes_800_and_the_longer_at_most_1333(size, resized, padded):
    pixels, inner = prepared(picture(*size))
    assert (inner, tuple(pixels.shape)) == (resized, (1, 3, *padded))
    assert not pixels[..., inner[0] :, :].any()
    assert not pixels[..., inner[1] :].any()


def test_small_pictures_are_prepared_as_by_transformers(detector_weights):
    from transformers import Mask2FormerImageProcessor

    small = picture(256, 256)
    theirs = Mask2FormerImageProcessor()(small, return_tensors="pt")["pixel_values"]
    assert (prepared(small)[0] - theirs).abs().max() < 0.02  # a value is off by one of 255 here and there


def test_a_detector_is_read_from_a_folder_as_it_was_saved(detector_weights, detector):
    from transformers import Mask2FormerForUniversalSegmentation

    saved = Mask2FormerForUniversalSegmentation.from_pretrained(detector_weights).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in detector.state_dict().items())
    assert not detector.training


def test_objects_are_those_of_mmdets_way_from_logits_to_instances(detector):
    """As `instance_postprocess` of mmdet's MaskFormerFusionHead has it, all at once and without short cuts."""
    seen = picture(48, 64)
    (pixels, (height, width)), objects = prepared(seen), objects_in(seen, detector)
    with torch.no_grad():
        told = detector(pixel_values=pixels)
    masks = interpolate(told.masks_queries_logits, pixels.shape[-2:], mode="bilinear", align_corners=False)
    masks = interpolate(masks[..., :height, :width], (48, 64), mode="bilinear", align_corners=False)[0]
    scores, places = told.class_queries_logits[0].softmax(-1)[:, :-1].flatten().topk(100, sorted=False)
    masks, names = masks[places // 80], [CLASSES[place % 80] for place in places.tolist()]
    binary = (masks > 0).float()
    scores = scores * (masks.sigmoid() * binary).flatten(1).sum(1) / (binary.flatten(1).sum(1) + 1e-6)
    expected = sorted(
        (round(score, 4), name, int(one.sum()))
        for score, name, one in zip(scores.tolist(), names, binary, strict=True)
        if score > 0.3
    )
    assert expected  # else this shows nothing
    assert sorted((round(one.score, 4), one.name, int(np.sum(one.mask))) for one in objects) == expected


def test_all_but_the_object_is_grey_in_its_crop():
    inside = np.zeros((8, 10), dtype=bool)
    inside[2:5, 3:9] = True
    inside[3, 4] = False
    seen = picture(8, 10)
    crop = np.asarray(cut_out(seen, Detection("dog", 0.9, (3.0, 2.0, 9.0, 5.0), inside)))
    expected = np.where(inside[..., None], seen, np.uint8(0x99))[2:5, 3:9]
    assert np.array_equal(crop, expected)
    assert tuple(crop[1, 1]) == (0x99, 0x99, 0x99)
    assert np.array_equal(cut_out(seen, Detection("dog", 0.9, (3.0, 2.0, 9.0, 5.0))), seen[2:5, 3:9])


def test_a_colour_is_the_nearest_of_ten_by_the_mean_of_three_texts(namer, clip_weights):
    model, processor = clip_model_and_processor(clip_weights)
    seen, inside = picture(40, 40), np.ones((40, 40), dtype=bool)
    boxes = [(0, 0, 12 + 2 * number, 20 + number) for number in range(20)]
    objects = [Detection("wine glass", 0.9, tuple(map(float, box)), inside) for box in boxes]
    texts = [
        [f"a photo of a {c} wine glass", f"a photo of a {c}-colored wine glass", f"a photo of a {c} object"]
        for c in COLOURS
    ]
    with torch.no_grad():
        of_colours = torch.stack(
            [model.clip.encode_text(open_clip.tokenize(three), normalize=True).mean(0) for three in texts]
        )
        pixels = torch.stack([processor.preprocess(cut_out(seen, one)) for one in objects])
        nearest = torch.cosine_similarity(model.clip.encode_image(pixels)[:, None], of_colours[None], dim=-1).argmax(1)
    assert namer(seen, objects, "wine glass") == [COLOURS[best] for best in nearest]
    assert namer(seen, objects[:1], "wine glass") == [COLOURS[nearest[0]]]


def test_a_judge_has_another_name_with_other_weights(detector_weights, clip_weights, tmp_path):
    first, again = (read_judge(detector_weights, clip_weights, "metrics.geneval", torch.device("cpu")) for _ in "12")
    assert first.name == again.name
    other = read_detector(detector_weights, OPTION)
    other.class_predictor.bias[0] += 1
    other.save_pretrained(tmp_path)
    assert read_judge(str(tmp_path), clip_weights, "metrics.geneval", torch.device("cpu")).name != first.name


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def changed(**values: object):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def without_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["class_predictor.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "does not exist. Set metrics.geneval.detector_weights=FOLDER to a folder with config.json and"),
        (
            lambda folder: without(folder, "model.safetensors"),
            "has no model.safetensors or model.safetensors.index.json or pytorch_model.bin",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json is damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "that transformers reads"),
        (changed(model_type="detr"), "is not that of a mask2former over swin"),
        (
            changed(backbone="microsoft/swin-tiny", use_pretrained_backbone=True),
            "is not that of a mask2former over swin",
        ),
        (changed(auto_map={"AutoModel": "elsewhere--program.Model"}), "is not that of a mask2former over swin"),
        (changed(num_attention_heads=0), "that transformers reads"),
        (changed(id2label="x"), "that transformers reads"),
        (changed(attn_implementation="owner/kernel"), "attn_implementation=owner/kernel, a program from elsewhere"),
        (changed(backbone_config={"model_type": "timm_backbone"}), "is not that of a mask2former over swin"),
        (changed(hidden_dim=64), "that transformers reads"),
        (without_a_weight, "lacks 1 of the network's weights, such as class_predictor.weight"),
        (lambda folder: write_small_mask2former(folder, 133), "knows 133 classes, and GenEval asks for the 80 of COCO"),
    ],
)
def test_weights_that_are_missing_or_others_are_told_with_where_they_are_set(damage, says, detector_weights, tmp_path):
    folder = Path(shutil.copytree(detector_weights, tmp_path / "weights"))
    damage(folder)
    with pytest.raises((SettingsError, FileNotFoundError, ValueError), match=says) as told:
        read_detector(str(folder), OPTION)
    assert str(folder) in str(told.value)


def test_a_clip_that_is_missing_is_told_with_where_it_is_set(detector_weights, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Set metrics\.geneval\.clip_weights=FOLDER to a folder with open_clip"
    ):
        read_judge(detector_weights, str(tmp_path / "none"), "metrics.geneval", torch.device("cpu"))


def test_without_a_network_the_hub_is_named_and_what_to_fetch_from_it(detector_weights, clip_weights, monkeypatch):
    def unreachable(*given: object) -> Path:
        raise ConnectionError("no network")

    monkeypatch.setattr("microdit.encoders.weights._download", unreachable)
    with pytest.raises(FileNotFoundError, match=r"hf download facebook/mask2former-swin-small-coco-instance --include"):
        read_judge("facebook/mask2former-swin-small-coco-instance", clip_weights, "x", torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match=r"hf download timm/vit_large_patch14_clip_224\.openai --include"):
        read_judge(detector_weights, "hf-hub:timm/vit_large_patch14_clip_224.openai", "x", torch.device("cpu"))


def test_without_transformers_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        SettingsError, match=r"pip install 'microdit\[judges\]'.* metrics\.geneval\.detector_weights=FOLDER"
    ):
        read_detector("facebook/mask2former-swin-small-coco-instance", OPTION)
