"""Exported folders, opened by diffusers in a process where this package cannot be imported."""

import copy
import json
import os
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_processes import run_script
from small_clip import write_small_clip
from torch import Tensor

from microdit.checkpoints.export import read_weights
from microdit.checkpoints.reading import network_weights
from microdit.encoders.pixel import PixelAutoencoder
from microdit.encoders.words import WordsTextEncoder
from microdit.hub.diffusers_folder import WEIGHTS, export_diffusers, write_folder
from microdit.kinds import SettingsError
from microdit.pipeline import LatentDiffusion, build_pipeline, start_noise, write_settings

PLAIN = Path(__file__).parents[1] / "helpers" / "plain_diffusers.py"
PROMPTS = ["a red circle", "three blue squares on wood"]
SHARES = {"first_share": 0.25, "last_share": 0.25}
MASKDIT = {"decoder_depth_ratio": 0.5, "decoder_width_ratio": 0.5, "reconstruction_weight": 0.1}
# What differs from the small pipeline of every test: the parts, and how it draws.
NETWORKS: dict[str, dict[str, Any]] = {
    "deferred": {"token_path": {"_target_": "microdit.masking.deferred.Deferred", "block_size": 2}},
    "none": {"token_path": {"_target_": "microdit.masking.none.Unmasked"}},
    "naive": {"token_path": {"_target_": "microdit.masking.naive.Naive"}},
    "maskdit": {"token_path": {"_target_": "microdit.masking.maskdit.MaskDiT", **MASKDIT}},
    "tread": {"token_path": {"_target_": "microdit.masking.tread.Tread", **SHARES}},
    "sprint": {"token_path": {"_target_": "microdit.masking.sprint.Sprint", "path_drop": 0.1, **SHARES}},
    "rectified_flow": {"objective": {"_target_": "microdit.objectives.rectified_flow.RectifiedFlow"}},
    "x_prediction": {"objective": {"_target_": "microdit.objectives.x_prediction.XPrediction"}},
}
DRAWN_BY = {
    "heun": {"sampler": "heun", "num_inference_steps": 4, "guidance_scale": 2.0},
    "dpm_solver_2m": {"sampler": "dpm_solver_2m", "num_inference_steps": 6, "guidance_interval": [0.1, 80.0]},
}
SIZES = {"sprint": (8, 16), "maskdit": (12, 8)}  # pixels, where they are not those of training


def drawn_plainly(orders: list[tuple], folder: Path) -> list[dict[str, Any]]:
    torch.save(orders, folder / "orders.pt")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HOME")}
    environment |= {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(PLAIN), str(folder / "orders.pt"), str(folder / "drawn.pt")],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "drawn.pt")


def noise(pipeline: LatentDiffusion, seed: int, size: tuple[int, int] | None = None) -> Tensor:
    return torch.stack([start_noise(seed, i, pipeline.latent_shape(size)) for i in range(len(PROMPTS))])


@pytest.fixture(scope="module")
def pictures(pipeline_settings, wake, tmp_path_factory) -> dict[str, tuple[Tensor, dict[str, Any], LatentDiffusion]]:
    """Of every network: our pictures, what plain diffusers drew from the same noise, and the pipeline."""
    root = tmp_path_factory.mktemp("diffusers")
    clip = {"_target_": "microdit.encoders.open_clip_text.OpenClipTextEncoder", "channels": 32}
    parts = {**NETWORKS, "clip": {"text_encoder": {**clip, "weights": str(write_small_clip(root))}}}
    pipelines = {"embedded": LatentDiffusion.load("embedded:shapes")}
    for number, (name, changes) in enumerate(parts.items()):
        torch.manual_seed(number)
        sampling = dict(list(DRAWN_BY.values())[number % 2])
        if name == "sprint":
            sampling["guidance"] = "path_drop"
        pipelines[name] = build_pipeline({**copy.deepcopy(pipeline_settings), **changes, "sampling": sampling})
        wake(pipelines[name].dit)
        pipelines[name].save(root / name)
    orders, ours = [], []
    for name, pipeline in pipelines.items():
        size = SIZES.get(name)
        source = "embedded:shapes" if name == "embedded" else root / name
        folder = export_diffusers(source, output=root / f"{name}_exported")
        opened = {"custom_pipeline": "pipeline"} if name == "deferred" else {}
        again = str(root / f"{name}_saved") if name in ("embedded", "clip", "tread") else None
        sides = {} if size is None else {"height": size[0], "width": size[1]}
        orders.append((str(folder), opened, {"prompt": PROMPTS, "latents": noise(pipeline, 3, size), **sides}, again))
        ours.append(pipeline.generate(PROMPTS, seed=3, image_size=size))
    theirs = drawn_plainly(orders, root)
    return {name: each for name, *each in zip(pipelines, ours, theirs, pipelines.values(), strict=True)}


@pytest.mark.parametrize("name", ["embedded", "clip", *NETWORKS])
def test_plain_diffusers_draws_our_pictures_from_the_same_noise(pictures, name):
    ours, theirs, pipeline = pictures[name]
    assert ours.std() > 0.05
    assert not torch.allclose(ours[0], ours[1], atol=0.05)
    assert theirs["images"].shape == ours.shape
    assert (theirs["images"] - ours).abs().max() < 1e-3
    assert theirs["parameters"] == sorted(pipeline.dit.state_dict())


@pytest.fixture
def run(pipeline_settings, tmp_path) -> Path:
    """A run with a checkpoint, whose average is all zeros."""
    torch.manual_seed(0)
    pipeline = build_pipeline(pipeline_settings)
    write_settings(pipeline_settings, tmp_path)
    weights = pipeline.dit.state_dict()
    state = {f"network.{name}": value for name, value in weights.items()}
    state |= {f"ema.{name}": 0 * value for name, value in weights.items()}
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": state}, tmp_path / "checkpoints" / "step_0000012.ckpt")
    return tmp_path


def test_the_newest_checkpoint_of_a_run_is_written_its_average_or_its_raw_weights(run):
    folders = [export_diffusers(run), export_diffusers(run / "checkpoints" / "step_0000012.ckpt", "raw")]
    assert folders == [run / f"diffusers_{weights}_step_0000012" for weights in ("ema", "raw")]
    ema, raw = (read_weights(folder / "transformer" / WEIGHTS) for folder in folders)
    assert ema.keys() == raw.keys()
    assert not any(value.any() for value in ema.values())
    assert raw["x_embedder.proj.weight"].any()
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".")) == []


def test_the_command_writes_files_and_folders_by_the_name_of_their_format(run):
    made = run_script("export.py", str(run), "--format", "diffusers")
    assert made.returncode == 0, made.stderr
    index = json.loads((run / "diffusers_ema_step_0000012" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "EDMEulerScheduler"]
    assert index["vae"] == [None, None]
    again = run_script("export.py", str(run), "--format", "diffusers")
    assert again.returncode != 0
    assert "is there already" in again.stderr
    for name in ("safetensors", "released"):
        made = run_script("export.py", str(run), "--format", name, "--output", str(run / name))
        assert made.returncode == 0, made.stderr
    assert (run / "safetensors").read_bytes() == (run / "released").read_bytes()
    assert (
        read_weights(run / "released").keys()
        == network_weights(run / "checkpoints" / "step_0000012.ckpt", "ema").keys()
    )


def test_two_exports_at_once_write_one_whole_folder(run):
    with ThreadPoolExecutor(2) as at_once:
        failures = [each.exception() for each in [at_once.submit(export_diffusers, run) for _ in range(2)]]
    (refused,) = filter(None, failures)
    assert "is there already" in str(refused)
    assert (run / "diffusers_ema_step_0000012" / "transformer" / WEIGHTS).is_file()
    assert (run / "diffusers_ema_step_0000012" / "README.md").is_file()


def test_what_a_run_reads_elsewhere_is_named_before_it_is_put_into_the_folder(
    pipeline_settings, tmp_path, monkeypatch, capsys
):
    clip = {"_target_": "microdit.encoders.open_clip_text.OpenClipTextEncoder", "channels": 32}
    clip["weights"] = str(write_small_clip(tmp_path))
    build_pipeline({**pipeline_settings, "text_encoder": clip}).save(tmp_path / "saved")
    command = ["export.py", str(tmp_path / "saved"), "--format", "diffusers"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(Path(__file__).parents[2] / "export.py"), run_name="__main__")
    told, wrote = capsys.readouterr().out.splitlines()
    assert told == f"as {tmp_path}/saved/pipeline.json says: text_encoder.weights={clip['weights']}"
    assert wrote == f"wrote {tmp_path}/saved/diffusers"


def test_a_folder_that_is_there_stays_as_it_is(run):
    (run / "there").mkdir()
    (run / "there" / "mine").write_text("mine")
    with pytest.raises(SettingsError, match="is there already"):
        export_diffusers(run, output=run / "there")
    assert (run / "there" / "mine").read_text() == "mine"


class OwnPixels(PixelAutoencoder):
    pass


class OwnWords(WordsTextEncoder):
    pass


@pytest.mark.parametrize(("part", "own"), [("autoencoder", OwnPixels()), ("text_encoder", OwnWords(16, 6))])
def test_a_part_of_somebodys_own_is_refused(pipeline_settings, tmp_path, part, own):
    pipeline = build_pipeline(pipeline_settings)
    setattr(pipeline, part, own)
    with pytest.raises(SettingsError, match=rf"{part}: .*Own\w+ is not of this package"):
        write_folder(pipeline, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_comes_with_the_package_wants_a_place():
    with pytest.raises(SettingsError, match="--output"):
        export_diffusers("embedded:shapes")
