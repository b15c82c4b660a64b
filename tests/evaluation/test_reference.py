"""What is known of true pictures is kept beside them, used again for the very same question, and for no other."""

import shutil
from pathlib import Path

import made_sets
import numpy as np
import pytest
from PIL import Image
from small_clip import write_small_clip

from microdit.checkpoints.reading import CheckpointError
from microdit.evaluation import photos
from microdit.evaluation.photos import PhotoDiscrepancy, PhotoFrechet, TruePictures
from microdit.evaluation.subject import Subject
from microdit.files import DamagedFileError

SAMPLING = {"num_inference_steps": 2, "guidance_scale": 1.0, "seed": 0}


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> str:
    return str(write_small_clip(tmp_path_factory.mktemp("clip"), embed_dim=4))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Six captioned pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(6):
        pixels = np.clip(random.normal(40 * number, 20, (20, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


@pytest.fixture
def measured(folder, towers, pipeline, tmp_path, monkeypatch):
    """measured(...): the number, and how often true pictures were looked at for it."""
    looked: list[int] = []
    usual = TruePictures.features
    monkeypatch.setattr(TruePictures, "features", lambda *given: looked.append(1) or usual(*given))

    def measure(kind=PhotoFrechet, refresh: bool = False, weights: str = towers, source=None, **changes):
        features = {"_target_": "microdit.evaluation.clip.OpenClipFeatures", "weights": weights, "name": "tiny"}
        source = source or {"_target_": "microdit.data.sources.folder.FolderSource", "path": str(folder)}
        given = {"source": source, "count": 4, "reference_count": None, "features": features, "sampling": SAMPLING}
        before = len(looked)
        numbers, _ = kind(**{**given, **changes}).evaluate(Subject(pipeline, tmp_path / "run", refresh=refresh))
        (number,) = numbers.values()
        return number, len(looked) - before

    return measure


@pytest.mark.parametrize("kind", [PhotoFrechet, PhotoDiscrepancy])
def test_true_pictures_are_looked_at_once_and_the_number_is_the_same(measured, folder, kind, capsys):
    first, looked = measured(kind)
    assert looked == 1
    (kept,) = Path(f"{folder}.statistics").iterdir()
    assert f"tiny of true pictures: kept in {kept}" in capsys.readouterr().err
    assert measured(kind) == (first, 0)
    told = capsys.readouterr().err
    assert f"tiny of true pictures: as kept in {kept} (refresh=true computes them anew)" in told
    assert measured(kind, refresh=True) == (first, 1)
    assert [*Path(f"{folder}.statistics").iterdir()] == [kept]


def test_a_distance_and_a_discrepancy_keep_different_things(measured, folder):
    assert [measured(kind)[1] for kind in (PhotoFrechet, PhotoDiscrepancy)] == [1, 1]
    assert len([*Path(f"{folder}.statistics").iterdir()]) == 2


@pytest.mark.parametrize("change", ["a picture", "one more", "how many", "weights", "the size"])
def test_another_source_network_size_or_count_is_looked_at_anew(measured, folder, tmp_path, monkeypatch, change):
    measured()
    changes = {}
    if change == "a picture":
        Image.new("RGB", (30, 30), "red").save(folder / "3.png")
    elif change == "one more":
        shutil.copy(folder / "3.png", folder / "7.png")
        (folder / "7.txt").write_text("another")
    elif change == "how many":
        changes["reference_count"] = 5
    elif change == "weights":
        (tmp_path / "others").mkdir()
        changes["weights"] = str(write_small_clip(tmp_path / "others", embed_dim=5))
    else:
        monkeypatch.setattr(photos, "drawn", smaller(photos.drawn))
    assert measured(**changes)[1] == 1
    assert len([*Path(f"{folder}.statistics").iterdir()]) == 2
    assert measured(**changes)[1] == 0


def smaller(usual):
    """Pictures that are said to be of half their side."""

    def drawn(*given):
        pictures, shown = usual(*given)
        return pictures, shown[..., ::2, ::2]

    return drawn


@pytest.mark.parametrize(
    "damage", ["cut off", "of another shape", "not numbers", "another bit", "of one picture", "too large", "of 8 bits"]
)
def test_what_is_damaged_is_told_with_the_cure(measured, folder, damage):
    import torch
    from safetensors.torch import load_file, save_file

    measured()
    (kept,) = Path(f"{folder}.statistics").iterdir()
    content, tensors = bytearray(kept.read_bytes()), load_file(kept)
    content[-20] ^= 1
    total, count = tensors["total"], tensors["count"]
    others = {
        "of another shape": {"total": total[:-1]},
        "not numbers": {"total": total * torch.nan},
        "of one picture": {"count": count - count + 1},
        "too large": {"total": total + 1e200},
        "of 8 bits": {"total": total.to(torch.float8_e4m3fn)},
    }
    if damage in others:
        save_file(tensors | others[damage], kept)
    else:
        kept.write_bytes(content if damage == "another bit" else content[:-40])
    cure = "of two pictures at least" if damage == "of one picture" else "refresh=true"
    with pytest.raises((DamagedFileError, CheckpointError, ValueError), match=cure):
        measured()
    assert measured(refresh=True)[1] == 1
    assert measured()[1] == 0


def test_where_nothing_can_be_kept_it_is_said_and_the_number_is_there(measured, folder, capsys):
    first, _ = measured()
    shutil.rmtree(f"{folder}.statistics")
    Path(f"{folder}.statistics").touch()
    assert measured() == (first, 1)
    assert "tiny of true pictures: not kept for the next time" in capsys.readouterr().err


def test_a_link_in_the_place_of_its_folder_is_not_written_through(measured, folder, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name}_outside"
    outside.mkdir()
    Path(f"{folder}.statistics").symlink_to(outside)
    measured()
    assert "not kept" in capsys.readouterr().err
    assert not list(outside.iterdir())


def test_a_source_without_a_place_has_nothing_kept(measured, tmp_path):
    shapes = {
        "_target_": "microdit.data.sources.embedded_shapes.ShapesSource",
        "domain": "synthetic",
        "count": 6,
        "side_px": 16,
    }
    before = {path.name for path in tmp_path.iterdir()}
    assert [measured(source=shapes)[1] for _ in range(2)] == [1, 1]
    assert {path.name for path in tmp_path.iterdir()} - before == {"run"}


@pytest.mark.parametrize(
    ("made", "kind"), [(made_sets.huggingface, "parquet.ParquetSource"), (made_sets.mds, "mds.MdsSource")]
)
def test_what_is_known_of_pictures_in_other_files_is_kept_beside_these(measured, tmp_path, made, kind):
    made(tmp_path / "set")
    source = {"_target_": f"microdit.data.sources.{kind}", "path": str(tmp_path / "set")}
    assert [measured(source=source)[1] for _ in range(2)] == [1, 0]
    assert len([*(tmp_path / "set.statistics").iterdir()]) == 1
