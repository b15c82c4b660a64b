"""prepare.py as a user runs it."""

from pathlib import Path

import numpy as np
from cli_processes import run_script
from PIL import Image


def test_a_folder_of_photographs_becomes_data_and_its_tars_can_be_indexed_again(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(30):
        Image.fromarray(np.full((40, 50, 3), 8 * number, np.uint8)).save(tmp_path / f"photos/{number}.jpg")
        (tmp_path / f"photos/{number}.txt").write_text(f"photograph {number}")
    overrides = ("source=folder", "source.path=photos", "name=holidays", "held_out=0.2")
    done = run_script("prepare.py", *overrides, folder=tmp_path, cold=True)
    assert done.returncode == 0, done.stderr
    train = tmp_path / "data/holidays/train/latents-pixel-words-32px"
    assert (train / "index.npz").exists()
    assert (tmp_path / "data/holidays/validation/latents-pixel-words-32px/index.npz").exists()
    assert "0 filtered, 0 broken" in done.stdout
    assert "images/s" in done.stdout
    written = (train / "index.npz").read_bytes()
    (train / "index.npz").unlink()
    again = run_script("prepare.py", f"index={train}", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (train / "index.npz").read_bytes() == written


def test_mistakes_are_told_in_one_sentence(tmp_path: Path) -> None:
    missing = run_script("prepare.py", "source=folder", "source.path=nowhere", folder=tmp_path)
    assert missing.returncode == 1
    assert "error: nowhere is no folder. Give the folder of your pictures: source.path=FOLDER" in missing.stderr
    assert "Traceback" not in missing.stderr
    unknown = run_script("prepare.py", "source=floder", folder=tmp_path)
    assert unknown.returncode == 1
    assert all(kind in unknown.stderr for kind in ("folder", "shapes", "table", "webdataset"))
