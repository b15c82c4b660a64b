"""Metrics of photographs, with small random towers in place of the real ones."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from compositions import plain
from PIL import Image
from small_clip import write_small_clip

from microdit.build import SettingsError
from microdit.evaluation.clip import clip_model_and_processor
from microdit.evaluation.frechet import as_bytes
from microdit.evaluation.metric import built_metrics
from microdit.evaluation.photos import PhotoClipScore, PhotoDiscrepancy, PhotoFrechet
from microdit.evaluation.pictures import Making, PicturesError, keep
from microdit.evaluation.subject import KeptSubject, Subject

CAPTIONS = ["a red bicycle", "a bowl of oranges", "a lighthouse", "two cups", "a dog on a beach", "a green car"]
INCEPTION = {"_target_": "microdit.evaluation.features.InceptionFeatures", "resize": "clean", "weights": None}
SAMPLING = {"num_inference_steps": 2, "guidance_scale": 1.5, "seed": 0}


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> str:
    return str(write_small_clip(tmp_path_factory.mktemp("clip"), embed_dim=4))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> dict:
    """Settings of a source of six captioned pictures, each another kind of noise."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number, caption in enumerate(CAPTIONS):
        pixels = np.clip(random.normal(40 * number, 20, (40, 50, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return {"_target_": "microdit.data.sources.folder.FolderSource", "path": str(folder)}


def frechet(photographs, features, **changes) -> PhotoFrechet:
    given = {"source": photographs, "count": 6, "reference_count": None}
    return PhotoFrechet(**{**given, "features": features, "sampling": SAMPLING, **changes})


def clip_score(photographs, towers, **changes) -> PhotoClipScore:
    return PhotoClipScore(**{"source": photographs, "count": 6, "weights": towers, "sampling": SAMPLING, **changes})


@pytest.fixture
def features(towers) -> dict:
    return {"_target_": "microdit.evaluation.clip.OpenClipFeatures", "weights": towers, "name": "tiny"}


def test_the_distance_of_the_true_pictures_to_themselves_is_zero(photographs, features, pipeline, tmp_path):
    generated = frechet(photographs, features).evaluate(Subject(pipeline, tmp_path / "drawn"))[0]
    assert generated["fid/tiny"] > 1e-3
    # The true pictures in the place of generated ones: what a perfect model would leave behind.
    square = [Image.open(f"{photographs['path']}/{i}.png").crop((5, 0, 45, 40)) for i in range(6)]
    true = torch.stack([torch.from_numpy(np.asarray(each).copy()).permute(2, 0, 1) / 255 for each in square])
    keep(tmp_path / "true/captions.tar", Making(CAPTIONS, SAMPLING, "", []), iter([true]))
    own = frechet(photographs, features).evaluate(KeptSubject(tmp_path / "true"))[0]
    assert own["fid/tiny"] == pytest.approx(0, abs=1e-4)


def test_the_discrepancy_judges_the_same_pictures_and_is_zero_for_the_true_ones(
    photographs, features, pipeline, tmp_path
):
    frechet(photographs, features).evaluate(Subject(pipeline, tmp_path))
    settings = {"source": photographs, "count": 6, "reference_count": None, "features": features, "sampling": SAMPLING}
    numbers, _ = PhotoDiscrepancy(**settings).evaluate(KeptSubject(tmp_path))
    assert numbers["cmmd/tiny"] > 1e-3
    square = [Image.open(f"{photographs['path']}/{i}.png").crop((5, 0, 45, 40)) for i in range(6)]
    true = torch.stack([torch.from_numpy(np.asarray(each).copy()).permute(2, 0, 1) / 255 for each in square])
    keep(tmp_path / "true/captions.tar", Making(CAPTIONS, SAMPLING, "", []), iter([true]))
    own, _ = PhotoDiscrepancy(**settings).evaluate(KeptSubject(tmp_path / "true"))
    assert own["cmmd/tiny"] == pytest.approx(0, abs=1e-9)


def test_the_clip_score_is_a_hundred_times_the_mean_cosine(photographs, towers, pipeline, tmp_path):
    subject = Subject(pipeline, tmp_path)
    numbers, shown = clip_score(photographs, towers).evaluate(subject)
    images = subject.pictures("captions", CAPTIONS, SAMPLING).all()
    model, processor = clip_model_and_processor(towers)
    pixels = processor(images=list(as_bytes(images)))["pixel_values"]
    cosine = torch.cosine_similarity(
        model.clip.encode_image(pixels), model.clip.encode_text(open_clip.tokenize(CAPTIONS))
    )
    assert numbers == {"clip_score": pytest.approx(max(0.0, 100 * cosine.mean().item()), abs=1e-3)}
    assert cosine.mean() > 0.001  # else the score is cut off at 0 and shows nothing
    assert shown.size[0] > 144


def test_both_metrics_judge_the_same_pictures_drawn_once(photographs, towers, features, pipeline, tmp_path):
    subject = Subject(pipeline, tmp_path)
    clip_score(photographs, towers).evaluate(subject)
    drawn: list[int] = []
    subject.progress = lambda done, total: drawn.append(done)
    frechet(photographs, features, count=4).evaluate(subject)
    assert drawn == []
    assert [path.name for path in tmp_path.glob("*.tar")] == ["captions.tar"]


def test_without_torch_fidelity_inception_says_what_to_install_before_drawing(
    photographs, pipeline, tmp_path, monkeypatch
):
    monkeypatch.setattr("microdit.evaluation.features.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'microdit\[fid\]'"):
        frechet(photographs, INCEPTION).evaluate(Subject(pipeline, tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_is_missing_is_named(photographs, towers, pipeline, tmp_path):
    subject = Subject(pipeline, tmp_path)
    with pytest.raises(PicturesError, match="6 captioned pictures, not 7"):
        clip_score(photographs, towers, count=7).evaluate(subject)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        clip_score({**photographs, "path": "nowhere"}, towers).evaluate(subject)
    with pytest.raises(FileNotFoundError, match=r"the folder .* does not exist"):
        clip_score(photographs, str(tmp_path / "no_towers")).evaluate(subject)


@pytest.mark.parametrize("choice", ["clip_fid", "fdd", "cmmd", "clip_score", "geneval", "hps_v2", "pick_score"])
def test_what_says_that_weights_are_missing_names_them_as_they_are_typed(choice, photographs, pipeline, tmp_path):
    """And where they come from, and which files a folder of one's own has to have."""
    pytest.importorskip("transformers", reason="some of these are of transformers: pip install 'microdit[judges]'")
    (given,) = plain(f"metrics={choice}", config="evaluate")["metrics"].values()
    (tmp_path / "prompts.txt").write_text("a boat")
    given |= {name: value for name, value in (("source", photographs), ("count", 2)) if name in given}
    given |= {"prompts_file": str(tmp_path / "prompts.txt")} if choice in ("hps_v2", "pick_score") else {}
    part = next((name for name in ("features", "scorer") if name in given), None)
    option = "detector_weights" if choice == "geneval" else "weights"
    (given if part is None else given[part])[option] = str(tmp_path / "no_weights")
    (metric,) = built_metrics({choice: given}).values()
    typed = re.escape(".".join(filter(None, ["metrics", choice, part, option])))
    for use in (lambda: metric.ask(pipeline), lambda: metric.evaluate(Subject(pipeline, tmp_path / "run"))):
        with pytest.raises(
            FileNotFoundError, match=rf"^{typed}=.*no_weights does not exist.*Set {typed}=FOLDER.* with"
        ):
            use()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("open_clip_config.json", {"model_cfg": {"embed_dim": 24}}),
        ("open_clip_config.json", {"model_cfg": {"foo": 1}}),
        ("open_clip_model.safetensors", "junk"),
    ],
)
def test_a_clip_that_is_none_is_told(name, content, towers, tmp_path):
    folder = Path(shutil.copytree(towers, tmp_path / "towers"))
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(SettingsError, match=r"metrics\.x\.weights=.* does not hold a CLIP that open_clip reads"):
        clip_model_and_processor(str(folder), "metrics.x.weights")


def test_a_picture_that_cannot_be_read_is_not_skipped(photographs, towers, pipeline, tmp_path):
    for path in Path(photographs["path"]).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "3.txt").unlink()
    source = {**photographs, "path": str(tmp_path)}
    with pytest.raises(PicturesError, match=r"3\.png: no caption"):
        clip_score(source, towers).evaluate(Subject(pipeline, tmp_path))


@pytest.mark.parametrize(
    ("source", "lacks"),
    [
        ({"_target_": "microdit.data.prepare.embedded.DrawnShards", "folder": "a"}, "drawing must be a ShapesSource"),
        ({"_target_": "microdit.data.sources.held_out.PartOfSource", "held_out": True}, "source must be a Source"),
    ],
)
def test_a_source_that_settings_cannot_make_is_refused(source, lacks, pipeline, features):
    name = lacks.partition(" ")[0]
    given = {**source, name: {"_target_": "microdit.data.sources.tars.TarSource", "path": "a"}}
    if "held_out" in source:
        given |= {"share": 0.1}
    with pytest.raises(SettingsError, match=rf"{lacks}, which settings cannot hold"):
        PhotoFrechet(given, 2, None, features, SAMPLING).ask(pipeline)  # type: ignore[arg-type]


@pytest.mark.parametrize("other", ["shapes.features.ShapesFeatures", "clip.ClipModel", "frechet.Features"])
def test_features_without_a_name_are_refused_before_anything_is_drawn(photographs, pipeline, other):
    metric = frechet(photographs, {"_target_": f"microdit.evaluation.{other}"})
    with pytest.raises(SettingsError, match="does not make a Features"):
        metric.ask(pipeline)


def test_pictures_become_bytes_by_rounding():
    every = torch.arange(256).float() / 255
    assert torch.equal(
        as_bytes(every.view(1, 1, 16, 16).expand(1, 3, 16, 16))[0, 0].flatten(), torch.arange(256).byte()
    )
