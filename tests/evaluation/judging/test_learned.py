"""HPSv2 and PickScore: their real classes, small and random, read from folders."""

import json
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from chat_server import keep_shades
from PIL import Image
from small_clip import write_small_clip
from small_pick_score import write_small_pick_score

from microdit.evaluation.clip import clip_model_and_processor
from microdit.evaluation.judging.learned import HpsV2, LearnedScore, PickScore
from microdit.evaluation.subject import KeptSubject, Subject
from microdit.kinds import SettingsError

PROMPTS = ["a dog", "two cats", "a red boat", "42"]


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, 20, 24, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def hps_weights(tmp_path_factory) -> Path:
    """A folder with a file as HPSv2's, of a small CLIP that open_clip knows as small_clip."""
    folder = write_small_clip(tmp_path_factory.mktemp("hps"))
    model, _ = clip_model_and_processor(str(folder))
    torch.save({"state_dict": model.clip.state_dict(), "epoch": 3}, folder / "HPS_v2.1_compressed.pt")
    return folder


@pytest.fixture(scope="module")
def pick_weights(tmp_path_factory) -> Path:
    pytest.importorskip("transformers", reason="PickScore is a model of transformers: pip install 'microdit[judges]'")
    return write_small_pick_score(tmp_path_factory.mktemp("pick"))


@pytest.fixture(params=["hps_v2", "pick_score"])
def scorer(request) -> dict:
    """Settings of each."""
    if request.param == "hps_v2":
        weights = str(request.getfixturevalue("hps_weights"))
        target = "microdit.evaluation.judging.learned.HpsV2"
        return {"_target_": target, "weights": weights, "architecture": "small_clip"}
    weights = str(request.getfixturevalue("pick_weights"))
    return {"_target_": "microdit.evaluation.judging.learned.PickScore", "weights": weights, "processor": weights}


def test_hps_is_a_hundred_times_the_cosine_by_open_clip_itself(hps_weights):
    scores = HpsV2(str(hps_weights), "small_clip")(pictures(4), PROMPTS)
    model, _, preprocess = open_clip.create_model_and_transforms(
        "small_clip", pretrained=str(hps_weights / "open_clip_model.safetensors")
    )
    pixels = torch.stack([preprocess(Image.fromarray(picture)) for picture in pictures(4)])  # type: ignore[operator]
    texts = open_clip.get_tokenizer("small_clip")(PROMPTS)
    with torch.no_grad():
        told = model.eval()(pixels, texts)
    assert scores.tolist() == pytest.approx((100 * told[0] @ told[1].T).diagonal().tolist(), abs=1e-3)


def test_pick_score_is_the_logit_of_transformers_itself(pick_weights):
    from transformers import CLIPModel, CLIPProcessor

    scores = PickScore(str(pick_weights), str(pick_weights))(pictures(4), PROMPTS)
    processor = CLIPProcessor.from_pretrained(pick_weights)
    images = [Image.fromarray(picture) for picture in pictures(4)]
    given = processor(images=images, text=PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = CLIPModel.from_pretrained(pick_weights)(**given).logits_per_image
    assert scores.tolist() == pytest.approx(logits.diagonal().tolist(), rel=1e-4)


def test_prompts_longer_than_clip_reads_are_cut(scorer):
    from microdit.build import build

    made = build(scorer, torch.nn.Module)
    assert torch.isfinite(made(pictures(1), ["dog " * 500])).all()


def metric(tmp_path: Path, scorer: dict, **changes) -> LearnedScore:
    rows = [f"{prompt}\t{category}\n" for prompt, category in zip(PROMPTS, "AABB", strict=True)]
    (tmp_path / "Parti.tsv").write_text("".join(["Prompt\tCategory\n", *rows]))
    given = {"prompts_file": str(tmp_path / "Parti.tsv"), "prompts_per_category": None, "scorer": scorer}
    return LearnedScore(**{**given, "sampling": {"num_inference_steps": 2, "seed": 0}, **changes})


def test_the_score_is_a_mean_over_prompts_also_by_category(scorer, tmp_path):
    from microdit.build import build

    shades = [0, 80, 160, 255]
    kept = KeptSubject(keep_shades(tmp_path / "kept", "Parti", PROMPTS, shades))
    numbers, shown = metric(tmp_path, scorer).evaluate(kept)
    made = build(scorer, torch.nn.Module)
    each = [float(made([np.full((8, 8, 3), s, np.uint8)], [p])) for s, p in zip(shades, PROMPTS, strict=True)]
    name = made.name
    assert numbers[name] == pytest.approx(np.mean(each), abs=1e-3)
    assert numbers[f"{name}/A"] == pytest.approx(np.mean(each[:2]), abs=1e-3)
    assert numbers[f"{name}/pictures"] == 4
    assert shown.size[0] > 256


def test_pictures_are_drawn_once_for_all_of_these_metrics(scorer, pipeline, tmp_path):
    told = []
    subject = Subject(pipeline, tmp_path / "run", progress=lambda *given: told.append(given))
    asked = metric(tmp_path, scorer, prompts_per_category=1)
    asked.ask(pipeline)
    numbers, _ = asked.evaluate(subject)
    assert told[-1] == (2, 2, "pictures scored")
    assert (tmp_path / "run/Parti.tar").is_file()
    assert asked.evaluate(KeptSubject(tmp_path / "run"))[0] == numbers


def test_what_is_missing_is_told_before_anything_is_drawn(scorer, pipeline, tmp_path):
    asked = metric(tmp_path, {**scorer, "weights": "./nowhere"})
    for use in (lambda: asked.ask(pipeline), lambda: asked.evaluate(Subject(pipeline, tmp_path / "run"))):
        with pytest.raises(
            FileNotFoundError,
            match=r"scorer\.weights=\./nowhere: .*does not exist.*Set metrics\.NAME\.scorer\.weights=FOLDER",
        ):
            use()
    assert not (tmp_path / "run").exists()


def test_weights_of_another_network_are_told(hps_weights, pick_weights, tmp_path):
    with pytest.raises(SettingsError, match=r"architecture=ViT-Z is none of open_clip's; HPSv2 has ViT-H-14"):
        HpsV2(str(hps_weights), "ViT-Z")
    for number, content in enumerate(
        ({"state_dict": {"a": torch.zeros(1)}}, {"b": 1}, [1], {"state_dict": Path()}, {"state_dict": {3: 1}})
    ):
        (tmp_path / str(number)).mkdir()
        torch.save(content, tmp_path / str(number) / "HPS_v2.1_compressed.pt")
        with pytest.raises(SettingsError, match="does not hold the weights of small_clip"):
            HpsV2(str(tmp_path / str(number)), "small_clip")
    other = Path(shutil.copytree(pick_weights, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "siglip"}))
    with pytest.raises(SettingsError, match="not that of a clip"):
        PickScore(str(other), str(pick_weights))
    (other / "preprocessor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"scorer\.processor=.*has no preprocessor_config\.json"):
        PickScore(str(pick_weights), str(other))
