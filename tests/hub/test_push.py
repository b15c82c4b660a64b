"""Networks given to a hub and taken from it, by a stand-in of its HTTP API on this machine."""

import json
import re
import sys

import huggingface_hub.constants
import pytest
import torch
import yaml
from PIL import Image
from small_hub import Hub, small_hub

from microdit.checkpoints.from_hub import FILES, from_hub, is_on_hub
from microdit.checkpoints.reading import CheckpointError
from microdit.checkpoints.starting import initial_checkpoint, load_initial_weights
from microdit.commands.entry_points import export
from microdit.hub.model_card import carbon_grams, model_card
from microdit.hub.push import check_push, push, write_for_hub, write_newest_grid
from microdit.kinds import SettingsError
from microdit.pipeline import LatentDiffusion, build_pipeline, objective_of, write_settings
from microdit.runs.folder import write_config
from microdit.runs.record import add_to_record, write_record

RECORD = {
    **{"status": "finished", "steps": 900, "images": 115200, "seconds": 3600.0, "devices": 2, "dollars": 7.5},
    **{"total_flops": 5.5e13, "device": "NVIDIA H100 80GB HBM3", "commit": "c1b0d46aaaaa", "seed": 0},
    **{
        "note": "it read /home/me/secret",
        "choice/data_mix": "shapes_many",
        "choice/masking": "deferred",
        "choice/metrics": "shapes",
    },
    **{"data/images/shapes_many": 115200, "train/loss": 0.2, "validation/loss": 0.17, "compositional/overall": 0.896},
}


@pytest.fixture(autouse=True)
def hub(monkeypatch, tmp_path) -> Hub:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.chdir(tmp_path)
    from_hub.cache_clear()
    with small_hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.address)
        monkeypatch.setenv("HF_TOKEN", served.token)
        yield served
    from_hub.cache_clear()


@pytest.fixture
def run(pipeline_settings, wake, tmp_path):
    """A finished run, evaluated once more, with a grid of pictures."""
    torch.manual_seed(0)
    folder = tmp_path / "runs" / "mine"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "samples").mkdir()
    pipeline = build_pipeline(pipeline_settings)
    wake(pipeline.dit)
    write_settings(pipeline_settings, folder)
    state = {f"network.{name}": value for name, value in pipeline.dit.state_dict().items()}
    torch.save({"state_dict": state}, folder / "checkpoints" / "step_0000900.ckpt")
    write_config(
        folder,
        {"seed": 0, "optimizer": {"lr": 1e-3}, "features": {"weights": "/home/me/secret", "more": ["a", "~/secret"]}},
        {},
    )
    write_record(folder, RECORD)
    add_to_record(folder, {"fid/distance@raw": 12.5}, {"metric": "fid", "weights": "raw", "settings": {}})
    Image.new("RGB", (32, 16), "red").save(folder / "samples" / "step_0000900.png")
    return folder


def exported(monkeypatch, capsys, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments])
    export()
    return capsys.readouterr().out


def test_what_is_pushed_is_listed_first_and_loads_by_its_name(hub, run, monkeypatch, capsys, tmp_path):
    before = sorted(path.relative_to(run) for path in run.rglob("*"))
    said = exported(monkeypatch, capsys, str(run), "--push", "me/shapes", "--private", "--license", "mit")
    files = {"README.md", "pipeline.json", "result.json", "samples.png", "weights.safetensors"}
    assert hub.repositories["me/shapes"].keys() - {".gitattributes"} == files
    assert hub.private["me/shapes"]
    listed, _, rest = said.partition("uploaded: ")
    assert f"to {hub.address}/me/shapes (private" in listed
    assert all(re.search(rf"  {re.escape(file)}  [\d,]+ bytes", listed) for file in files)
    assert rest.startswith(f"{hub.address}/me/shapes/commit/")
    assert sorted(path.relative_to(run) for path in run.rglob("*")) == before
    assert hub.token not in said
    told = b"".join(hub.repositories["me/shapes"].values())
    assert hub.token.encode() not in told
    assert b"secret" not in told

    ours, theirs = LatentDiffusion.load(run), LatentDiffusion.load("me/shapes")
    drawn = [each.generate(["a red circle"], seed=1, num_inference_steps=2) for each in (ours, theirs)]
    assert torch.equal(*drawn)
    torch.manual_seed(7)
    fresh = build_pipeline(ours.settings).dit
    load_initial_weights(fresh, "me/shapes", "ema")
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), ours.dit.state_dict().values(), strict=True)
    )
    assert objective_of("me/shapes") == "microdit.objectives.edm.EDM"
    fetched = {path for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert {path.rpartition("/")[2] for path in fetched} == {*FILES}  # and nothing else of it


def test_what_was_fetched_is_there_without_a_network(hub, run, monkeypatch, tmp_path):
    write_and_push(hub, run, tmp_path)
    first = from_hub("me/shapes")
    from_hub.cache_clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    assert from_hub("me/shapes") == first
    with pytest.raises(
        CheckpointError, match=r"^me/other: there is no folder of that name, and the Hugging Face hub.*"
    ):
        from_hub("me/other")


def write_and_push(hub: Hub, run, tmp_path, form: str = "safetensors") -> str:
    folder = tmp_path / "made"
    folder.mkdir()
    write_for_hub(run, "ema", form, "me/shapes", "apache-2.0", folder)
    return push(folder, "me/shapes", hub.token, private=False, tell=lambda line: None)


@pytest.mark.parametrize(
    ("name", "there", "on_hub"),
    [
        ("me/shapes", None, True),
        ("me/shapes", "me/shapes", False),
        ("me/shaeps", "me/shapes", False),  # a misspelt folder is asked of nobody
        ("./shapes", None, False),
        ("me/shapes/more", None, False),
        ("embedded:shapes", None, False),
        ("shapes", None, False),
        ("~me/shapes", None, False),
        ("me/../shapes", None, False),
    ],
)
def test_a_folder_wins_over_a_repository_of_its_name(tmp_path, name, there, on_hub):
    if there is not None:
        (tmp_path / there).mkdir(parents=True)
    assert is_on_hub(name) == on_hub


def test_a_saved_folder_here_is_started_from_too(run, tmp_path):
    LatentDiffusion.load(run).save(tmp_path / "saved")
    assert initial_checkpoint(str(tmp_path / "saved")) == tmp_path / "saved" / "weights.safetensors"


def test_what_is_too_large_or_none_of_ours_is_not_fetched(hub):
    hub.repositories["me/large"] = {"pipeline.json": b"{}", "weights.safetensors": b"few"}
    hub.told_sizes["weights.safetensors"] = 1 << 40
    hub.repositories["me/other"] = {"model_index.json": b"{}"}
    with pytest.raises(CheckpointError, match=r"weights.safetensors has 1,099,511,627,776 bytes, and .* is the most"):
        LatentDiffusion.load("me/large")
    with pytest.raises(CheckpointError, match=r"me/other .* has no pipeline.json"):
        LatentDiffusion.load("me/other")
    assert not [path for _, path, _ in hub.requests if "/resolve/" in path]


def test_what_is_fetched_is_checked_as_any_folder_of_somebody_else(hub):
    settings = {"model": {}, "token_path": {"_target_": "os.system"}, "objective": {}, "autoencoder": {}}
    settings["text_encoder"] = {"_target_": "os.system"}
    hub.repositories["me/code"] = {"pipeline.json": json.dumps(settings).encode(), "weights.safetensors": b"few"}
    with pytest.raises(SettingsError, match=r"pipeline\.json"):
        LatentDiffusion.load("me/code")
    hub.repositories["me/damaged"] = {"pipeline.json": b"{", "weights.safetensors": b"few"}
    with pytest.raises(ValueError, match=r"pipeline\.json is damaged"):
        LatentDiffusion.load("me/damaged")


@pytest.mark.parametrize("name", ["shapes", "me/", "https://elsewhere.org/me/shapes", "me/shapes/more", "../shapes"])
def test_what_is_no_repository_is_not_pushed_to(name):
    with pytest.raises(SettingsError, match="OWNER/NAME"):
        check_push(name)


def test_a_token_comes_from_the_environment_alone(monkeypatch, hub, run, tmp_path):
    (tmp_path / "token").write_text("hf_of_a_file")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(SettingsError, match="export HF_TOKEN="):
        check_push("me/shapes")
    assert hub.requests == []
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "README.md").write_text("words")
    with pytest.raises(OSError, match="did not take the files") as refused:
        push(folder, "me/shapes", check_push("me/shapes"), private=False, tell=lambda line: None)
    assert "hf_of" not in str(refused.value)
    assert {token for _, _, token in hub.requests} == {"hf_of_nobody"}


def test_nothing_is_uploaded_without_the_flag(hub, run, monkeypatch, capsys):
    exported(monkeypatch, capsys, str(run))
    assert hub.requests == []


def test_the_card_tells_data_recipe_metrics_with_commands_cost_and_carbon(run):
    card = model_card(run, LatentDiffusion.load(run), "me/shapes", "safetensors", "mit", picture=True)
    _, head, text = card.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert (metadata["license"], metadata["library_name"]) == ("mit", "microdit")
    assert metadata["pipeline_tag"] == "text-to-image"
    assert metadata["co2_eq_emissions"]["emissions"] == 1060.0  # 2 h at 700 W, 1.58 times, 480 g a kWh
    assert metadata["co2_eq_emissions"]["hardware_used"] == "2 x NVIDIA H100 80GB HBM3"
    for told in (
        *("# shapes", "900 steps, 115,200 pictures", "](samples.png)", 'LatentDiffusion.load("me/shapes")'),
        *("| `shapes_many` | 115,200 |", "| `masking` | `deferred` |", "`c1b0d46aaaaa`", "optimizer.lr: 0.001"),
        "| `compositional/overall` | 0.896 | `evaluate.py checkpoint=THE_RUN metrics=shapes` |",
        "| `fid/distance@raw` | 12.5 | `evaluate.py checkpoint=THE_RUN metrics=fid weights=raw` |",
        *("| hours | 1 |", "| dollars | 7.50 |", "at 700 W", "`mit`"),
    ):
        assert told in text, told
    assert "train/loss" not in text
    assert "secret" not in text
    assert "features.weights: (a place)" in text


def test_carbon_is_hours_times_watts_and_unknown_without_hours():
    assert carbon_grams({"seconds": 3600.0, "devices": 1, "device": "2 CPU threads (x86_64)"}) == pytest.approx(75.8)
    assert carbon_grams({"device": "2 CPU threads"}) is None


def test_words_of_a_run_are_shown_and_do_nothing(run):
    evil = "x`|\n# mine\n![](https://elsewhere.org/a.png)<script>"
    write_record(run, {**RECORD, "device": evil, "commit": evil, "choice/masking": evil, f"choice/{evil}": "a"})
    write_config(run, {"seed": 0, "name": evil, "optimizer": {"what": "```\n# mine"}}, {})
    card = model_card(run, LatentDiffusion.load(run), "me/shapes", "safetensors", "mit", picture=False)
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["co2_eq_emissions"]["training_type"] == "pre-training"
    assert "\n# mine" not in card
    outside = re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert "elsewhere.org" not in outside
    assert "<script>" not in outside


def test_encoders_of_this_machine_alone_are_told(run, pipeline_settings, tmp_path):
    (tmp_path / "kl").mkdir()
    kl = {
        "_target_": "microdit.encoders.autoencoder_kl.KLAutoencoder",
        "weights": str(tmp_path / "kl"),
        "channels": 3,
        "scale": 1.0,
    }
    write_settings({**pipeline_settings, "autoencoder": kl}, run)
    with pytest.raises(SettingsError, match=r"autoencoder\.weights=.*kl lies on this machine"):
        write_for_hub(run, "ema", "safetensors", "me/shapes", "mit", tmp_path / "kl")
    assert list((tmp_path / "kl").iterdir()) == []


def test_a_link_out_of_a_run_and_a_grid_that_is_none_are_refused(run, tmp_path):
    grid = run / "samples" / "step_0000901.png"
    grid.write_bytes(b"no picture")
    with pytest.raises(SettingsError, match="no grid of pictures"):
        write_newest_grid(run, tmp_path / "samples.png")
    grid.unlink()
    (tmp_path / "secret").write_text("secret")
    (run / "samples" / "step_0000902.png").symlink_to(tmp_path / "secret")
    with pytest.raises(SettingsError, match="is a link to"):
        write_for_hub(run, "ema", "safetensors", "me/shapes", "mit", tmp_path)


def test_a_folder_for_diffusers_is_pushed_with_the_same_card(hub, run, tmp_path):
    write_and_push(hub, run, tmp_path, "diffusers")
    files = hub.repositories["me/shapes"]
    assert {"model_index.json", "pipeline.py", "README.md", "samples.png", "result.json"} <= files.keys()
    assert b'DiffusionPipeline.from_pretrained("me/shapes"' in files["README.md"]
    assert b"library_name: diffusers" in files["README.md"]
