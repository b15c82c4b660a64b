"""A run folder from elsewhere is data: its files are text, compared with closed lists, and stay in the folder."""

import errno
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from rich.console import Console

from microdit.build import SettingsError, locate, trust
from microdit.checkpoints.reading import CheckpointError, read_checkpoint
from microdit.checkpoints.released import read_released
from microdit.commands.messages import tell_places
from microdit.commands.resumed import as_text, changed_values, read_elsewhere
from microdit.commands.train import check_it_fits
from microdit.data.prepare.embedded import EmbeddedShapes
from microdit.data.sources.captioned import Source
from microdit.data.stream.opening import DataMissingError
from microdit.distributed.hardware import check_hardware
from microdit.encoders.open_clip_text import OpenClipTextEncoder
from microdit.encoders.protocols import Autoencoder, TextEncoder
from microdit.evaluation.frechet import Features
from microdit.evaluation.judging.learned import Scorer
from microdit.evaluation.metric import Metric
from microdit.files import DamagedFileError, appending, claim
from microdit.kinds import Place, alternatives, kinds_of
from microdit.pipeline import LatentDiffusion, build_pipeline
from microdit.reports.report import report
from microdit.runs.folder import places_named, read_config, refuse_links
from microdit.runs.record import add_to_record
from microdit.training.data import open_data
from microdit.training.run import network_settings
from microdit.training.settings import Configuration, bind, training_settings

NOW = OmegaConf.create({"trainer": {"max_steps": 1, "max_flops": None}, "reading": {"cache_folder": "/home/me/cache"}})
WANDB = {"_target_": "lightning.pytorch.loggers.WandbLogger", "project": "theirs", "offline": False}


TAR = "microdit.data.sources.tars.TarSource"


def metric(source: dict) -> dict:
    return {"_target_": "microdit.evaluation.photos.PhotoFrechet", "source": source, "inception_weights": None}


def resumed(saved: dict, *overrides: str) -> dict:
    saved = {"logger": {}, "trainer": {"max_steps": 1, "max_flops": None}, "choices": {}, **saved}
    return changed_values(saved, [*overrides, "resume=runs/theirs"], NOW, Path("runs/theirs"))[0]


@given(st.text(alphabet="ab$\\{}:.,[]'\" ", max_size=20))
@example("${oc.env:HOME}")
@example("\\${oc.env:HOME}")
@example("\\\\${oc.env:HOME} \\${a} $${b} ${")
def test_nothing_in_a_saved_setting_is_resolved(text):
    assert resumed({"name": text, "model": {"list": [text]}})["name"] == text
    assert OmegaConf.to_container(OmegaConf.create({"a": as_text(text)}), resolve=True) == {"a": text}


@pytest.mark.parametrize(
    "setting",
    [
        {"settings": {"base_url": "http://127.0.0.1:1"}},
        {"entity": "theirs"},
        {"dir": "/tmp/elsewhere"},
        {"save_dir": "/tmp/elsewhere"},
        {"id": "mine"},
        {"name": "../../elsewhere"},
        {"project": "/elsewhere"},
        {"version": "k3x9abcd"},  # an older run of the user's, which would be joined and renamed
    ],
)
def test_where_a_run_logs_is_not_for_its_file(setting):
    with pytest.raises(SettingsError, match=r"config\.yaml says logger\.wandb.*no run's file may say"):
        resumed({"logger": {"wandb": WANDB | setting}})


def test_what_is_typed_is_meant():
    assert resumed({"logger": {"wandb": WANDB}})["logger"] == {"wandb": WANDB}
    mine = resumed({"logger": {"wandb": WANDB | {"entity": "mine"}}}, "logger.wandb.entity=mine")
    assert mine["logger"]["wandb"]["entity"] == "mine"
    own = WANDB | {"version": "k3x9abcd"}
    assert resumed({"logger": {"wandb": own}}, "logger.wandb.version=k3x9abcd")["logger"] == {"wandb": own}
    board = {"_target_": "microdit.training.callbacks.loggers.PatientTensorBoard", "version": "tensorboard"}
    assert resumed({"logger": {"tensorboard": board}})  # a folder in the run
    with pytest.raises(SettingsError, match=r"reading\.cache_folder=/theirs"):
        resumed({"reading": {"cache_folder": "/theirs"}})
    assert resumed({"reading": {"cache_folder": "/home/me/cache"}})  # as this command line has it
    assert resumed({"reading": {"cache_folder": "/theirs"}}, "reading.cache_folder=/theirs")
    with pytest.raises(SettingsError, match="download_folder"):
        resumed({"metrics": {"fid": {"source": {"download_folder": "/theirs"}}}})


def test_whom_a_judge_asks_with_the_users_key_is_not_for_a_runs_file():
    judge = {"weights": "theirs", "address": "https://theirs/v1"}
    saved, key = {"metrics": {"preference": {"judge": judge}}}, "metrics.preference.judge.address"
    with pytest.raises(SettingsError, match=rf"config\.yaml says {key}=https://theirs/v1\. .*no run's file may say"):
        resumed(saved)
    with pytest.raises(SettingsError, match=key):
        resumed(saved, "metrics.preference.judge.weights=mine")
    assert resumed(saved, f"{key}=https://mine/v1")["metrics"]["preference"]["judge"]["address"] == "https://mine/v1"
    assert resumed({"metrics": {"preference": {"judge": {**judge, "address": None}}}})


def test_a_link_that_leads_out_of_a_run_is_refused_and_one_inside_is_not(tmp_path):
    run = tmp_path / "run"
    (run / "wandb" / "run-1").mkdir(parents=True)
    (run / "wandb" / "latest-run").symlink_to("run-1")
    refuse_links(run)
    (tmp_path / "linked").symlink_to(run)
    refuse_links(tmp_path / "linked")
    (run / "samples").symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="samples is a link to"):
        refuse_links(run)


def test_settings_of_weights_and_biases_in_a_run_are_refused(tmp_path):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = http://127.0.0.1:1\n")
    with pytest.raises(SettingsError, match="tells Weights & Biases whom to send things to"):
        refuse_links(tmp_path)


ENCODER = {"_target_": "microdit.encoders.open_clip_text.OpenClipTextEncoder"}


def texts_named(settings: dict, *folders: Path) -> list[str]:
    return [text for _, text, _ in places_named(settings, folders, Configuration)]


def test_what_lies_elsewhere_is_named_by_its_key(tmp_path):
    settings = {
        "autoencoder": {"_target_": "microdit.encoders.autoencoder_kl.KLAutoencoder", "weights": "owner/name"},
        "text_encoder": {**ENCODER, "weights": str(tmp_path / "inside")},
        "metrics": {"fid": metric({"_target_": TAR, "path": ["https://host/a.tar", f"{tmp_path}/{{000..123}}.tar"]})},
        "data_mix": {"sources": [{"name": "a", "folder": "beside"}], "validation": []},
        "init_from": "../another",
        "paths": {"data_root": "data"},
    }
    assert [f"{key}={text}" for key, text, _ in places_named(settings, [tmp_path], Configuration)] == [
        "autoencoder.weights=owner/name",
        "metrics.fid.source.path.0=https://host/a.tar",
        "data_mix.sources.0.folder=beside",
        "init_from=../another",
        "paths.data_root=data",
    ]


@pytest.mark.parametrize(
    "weights", ["owner/name", "owner/name/vae", "hf-hub:owner/name", "https://host/a", "file:///a"]
)
def test_addresses_and_names_on_a_hub_are_elsewhere_wherever_one_stands(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name" / "vae").mkdir(parents=True)
    assert texts_named({"text_encoder": {**ENCODER, "weights": weights}}, tmp_path, Path("/")) == [weights]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("{http://host/a,http://host/b}.tar", True),
        ("{http,https}:{/,/}/host/a.tar", True),
        ("{imgs,../private}/a.tar", True),
        ("imgs/{000..123}.tar", False),
        ("imgs/*.tar", False),
        ("away/a.tar", True),
        ("imgs/../../a.tar", True),
        ("~/photos", True),
        ("a\0b", True),
        ("\ud800", True),
        ("", False),
    ],
)
def test_where_a_path_leads_in_the_end_is_what_counts(tmp_path, monkeypatch, path, named):
    run = tmp_path / "run"
    run.mkdir()
    (run / "away").symlink_to(tmp_path)
    monkeypatch.chdir(run)
    assert texts_named({"metrics": {"fid": metric({"_target_": TAR, "path": path})}}, run) == [path] * named


@pytest.mark.parametrize("weights", ["local-dir:vae", "./vae", "vae", "embedded:shapes"])
def test_what_is_in_the_run_or_comes_with_the_package_is_not_elsewhere(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    assert texts_named({"text_encoder": {**ENCODER, "weights": weights}}, tmp_path) == []


def test_what_a_class_of_another_package_may_read_is_named(monkeypatch):
    theirs = {"_target_": "anything.Reader", "secret": "theirs", "more": ["a", {"b": "c"}], "count": 1}
    monkeypatch.setattr("microdit.build.TRUSTED", {"microdit", "anything"})
    assert texts_named({"text_encoder": theirs}) == ["theirs", "a"]


@pytest.mark.parametrize("contract", [Autoencoder, TextEncoder, Source, Metric, Features, Scorer])
def test_every_text_that_a_class_of_ours_takes_is_declared_a_place_or_known_to_be_none(contract):
    no_places = {"caption_column", "image_column", "caption_suffix", "delimiter", "name", "domain", "split"}
    no_places |= {"download_folder", "architecture", "image_name", "quality_column"}
    classes = [contract, *(below for each in contract.__subclasses__() for below in (each, *each.__subclasses__()))]
    texts = {
        (each.__qualname__, name)
        for each in classes
        if each.__module__.startswith("microdit.")
        for name, (kind, _) in kinds_of(each).items()
        for one in alternatives(kind)
        if (one is str or one is Path) and name not in no_places
    }
    assert texts <= {("DrawnShards", "folder"), ("WithoutDuplicates", "folder")}  # which no settings can make


@pytest.mark.parametrize(
    "source",
    [
        {"_target_": "microdit.data.sources.table.TableSource", "path": "passwords.csv"},
        {"_target_": "microdit.data.sources.table.TableSource", "path": "RUN/a.csv", "image_folder": "photos"},
        {"_target_": "microdit.data.sources.folder.FolderSource", "path": "photos"},
        {"_target_": "microdit.data.sources.tars.TarSource", "path": ["RUN/a.tar", "https://host/a.tar"]},
    ],
)
def test_no_words_of_a_users_files_are_written_into_a_run_because_its_file_says_so(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    source = json.loads(json.dumps(source).replace("RUN", "runs/theirs"))
    for root in ({}, {"paths": {"data_root": "/"}}, {"paths": {"data_root": "."}}):
        with pytest.raises(SettingsError, match=r"says metrics\.fid\.source\..* are read where you name them"):
            resumed({"metrics": {"fid": metric(source)}, **root})


def test_pictures_to_judge_by_are_read_from_the_run_the_data_root_and_where_they_are_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    now = OmegaConf.merge(NOW, {"paths": {"data_root": "data"}})

    def resume(path, root, *overrides):
        saved = {"metrics": {"fid": metric({"_target_": TAR, "path": path})}, "paths": {"data_root": root}}
        saved |= {"logger": {}, "trainer": {"max_steps": 1, "max_flops": None}, "choices": {}}
        return changed_values(saved, [*overrides, "resume=runs/theirs"], now, Path("runs/theirs"))[0]

    assert resume("data/coco_2014_validation", "data")
    assert resume("runs/theirs/pictures", "data")
    assert resume("private", "data", "metrics.fid.source.path=photos")["metrics"]["fid"]["source"]["path"] == "photos"
    assert resume("/big/coco", "elsewhere", "paths.data_root=/big")
    with pytest.raises(SettingsError, match="are read where you name them"):
        resume("/big/coco", "/big")


def test_a_resumed_run_names_nothing_in_the_data_root_that_is_this_command_lines_own(tmp_path):
    def told(makes_shapes):
        mix = {"sources": [{"name": "a", "folder": "data/a"}, {"name": "b", "folder": "https://a/b"}], "validation": []}
        config = {"data_mix": mix, "paths": {"data_root": "data", "makes_shapes": makes_shapes}, "logger": {}}
        return [text for _, text, _ in read_elsewhere(config, tmp_path)]

    assert told(makes_shapes=True) == ["https://a/b"]
    assert told(makes_shapes=False) == ["data/a", "https://a/b", "data"]


def test_a_pipeline_names_nothing_that_nobody_trusts(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    part = {"_target_": "evil.X"}
    settings = dict.fromkeys(("token_path", "objective", "autoencoder", "text_encoder"), part)
    (tmp_path / "run" / "pipeline.json").write_text(json.dumps({"model": {}, **settings}))
    with pytest.raises(SettingsError, match=r"pipeline\.json: autoencoder: _target_ evil\.X is not of microdit"):
        LatentDiffusion.load(tmp_path / "run")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "damage", [{}, {"model": 3}, {"model": {"dim": "a"}}, {"model": {"depth": 10**9}}, {"model": {"dim": -1}}]
)
def test_a_pipeline_that_describes_nothing_is_refused_in_one_sentence(tmp_path, small_settings, damage):
    parts = {
        "token_path": {"_target_": "microdit.masking.deferred.Deferred"},
        "objective": {"_target_": "microdit.objectives.edm.EDM"},
        "autoencoder": {"_target_": "microdit.encoders.pixel.PixelAutoencoder"},
        "text_encoder": {"_target_": "microdit.encoders.words.WordsTextEncoder", "channels": 16, "length": 6},
    }
    elsewhere = ("in_channels", "caption_channels", "use_patch_mixer")
    model = {k: v for k, v in small_settings.items() if k not in elsewhere}
    told = {**parts, "model": model}
    if "model" in damage:
        told["model"] = {**model, **damage["model"]} if isinstance(damage["model"], dict) else damage["model"]
    else:
        del told["model"]
    (tmp_path / "pipeline.json").write_text(json.dumps(told))
    with pytest.raises((CheckpointError, SettingsError), match=r"pipeline\.json"):
        LatentDiffusion.load(tmp_path)


class Mischief:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("read", [read_checkpoint, read_released])
def test_no_message_advises_to_read_unsafely(tmp_path, read):
    torch.save({"a": Mischief(tmp_path / "made")}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path / "a.ckpt")
    assert not any(word in str(caught.value) for word in ("weights_only", "arbitrary", "add_safe_globals"))
    assert "it names" in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a tensor of shape \[1048576, 1048576\] has 4 bytes"):
        read_released(tmp_path / "a.pt")


def test_a_packed_archive_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({"a": torch.zeros(1 << 20)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for member in plain.namelist():
            packed.writestr(member, plain.read(member))
    with pytest.raises(CheckpointError, match="packed archive"):
        read_released(tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="packed archive"):
        read_checkpoint(tmp_path / "a.pt")


def test_processes_of_other_ranks_trust_what_this_one_does():
    program = "import microdit.build as b; print(sorted(b.TRUSTED))"
    environment = {**os.environ, "MICRODIT_TRUST": "mine,yours"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['microdit', 'mine', 'yours']"


def test_pickles_are_not_read_as_weights(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(pickle.dumps(Mischief(tmp_path / "made")))
    with pytest.raises(CheckpointError):
        read_released(tmp_path / "a.safetensors")
    assert not (tmp_path / "made").exists()


def test_a_list_that_holds_itself_many_times_is_looked_at_once(tmp_path):
    nested: list = []
    for _ in range(60):
        nested = [nested, nested]
    torch.save({"a": nested}, tmp_path / "a.ckpt")
    assert read_checkpoint(tmp_path / "a.ckpt").keys() == {"a"}


@pytest.mark.parametrize("tower", ["text_cfg", "vision_cfg"])
@pytest.mark.parametrize("key", ["hf_tokenizer_name", "tokenizer_kwargs", "timm_model_name"])
def test_an_encoders_folder_cannot_have_another_library_load_something(tmp_path, tower, key):
    config = {"model_cfg": {tower: {key: "anything"}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").touch()
    with pytest.raises(ValueError, match=f"has {key}=anything"):
        OpenClipTextEncoder(str(tmp_path)).tokenize(["a"])


def test_links_of_weights_and_biases_own_logs_are_welcome(tmp_path):
    logs = tmp_path / "run" / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "elsewhere.log")
    refuse_links(tmp_path / "run")
    (tmp_path / "elsewhere.log").touch()
    refuse_links(tmp_path / "run")
    (tmp_path / "run" / ".wandb").mkdir()
    (tmp_path / "run" / ".wandb" / "settings").touch()
    with pytest.raises(SettingsError, match="tells Weights & Biases"):
        refuse_links(tmp_path / "run")


@pytest.mark.parametrize(
    "link",
    [
        "wandb/tb.log",
        "wandb/debug.log",
        "wandb/run-1/logs/tb.log",
        "a/run-1/logs/debug-core.log",
        "wandb/a/debug-core.log",
    ],
)
def test_no_other_link_is_taken_for_one_of_weights_and_biases(tmp_path, link):
    path = tmp_path / "run" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="is a link to"):
        refuse_links(tmp_path / "run")


def test_a_link_of_weights_and_biases_to_a_folder_is_refused(tmp_path):
    logs = tmp_path / "run" / "wandb" / "run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="is a link to"):
        refuse_links(tmp_path / "run")


def test_links_that_lead_in_circles_and_what_is_no_file_are_refused(tmp_path):
    (tmp_path / "circle").mkdir()
    (tmp_path / "circle" / "a").symlink_to("a")
    with pytest.raises(SettingsError, match=r"circle/a is a link that leads nowhere but to itself.*remove it"):
        refuse_links(tmp_path / "circle")
    (tmp_path / "pipe" / "tensorboard").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe" / "tensorboard" / "hparams.yaml")
    with pytest.raises(SettingsError, match=r"hparams\.yaml is neither file nor folder.*remove it"):
        refuse_links(tmp_path / "pipe")


def test_a_folder_that_may_not_be_looked_into_may_hide_links(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # as for everybody but root
    with pytest.raises(SettingsError, match=r"closed cannot be listed.*chmod"):
        refuse_links(tmp_path)


@pytest.mark.parametrize("name", ["history.jsonl", "metrics.csv"])
def test_nothing_is_added_to_a_file_through_a_link(tmp_path, name):
    (tmp_path / "other").touch()
    (tmp_path / name).symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match=name), appending(tmp_path / name) as file:
        file.write("a line")
    assert (tmp_path / "other").read_text() == ""


def test_nothing_is_written_to_a_file_that_has_another_name(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / "history.jsonl").hardlink_to(mine)
    (tmp_path / ".00000.tar.partial").hardlink_to(mine)
    with (
        pytest.raises(OSError, match=r"history\.jsonl is a second name of another file"),
        appending(tmp_path / "history.jsonl"),
    ):
        pass
    with pytest.raises(OSError, match=r"partial is a second name of another file"), claim(tmp_path / "00000.tar"):
        pass
    assert mine.read_text() == "precious"


def test_what_evaluations_add_goes_through_no_link(tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "history.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(OSError, match="history"):
        add_to_record(tmp_path, {"fid": 1.0}, {})
    assert not (tmp_path / "other").exists()


def test_a_report_is_not_written_through_links(tmp_path):
    (tmp_path / "table.tex").symlink_to(tmp_path.parent / "elsewhere")
    with pytest.raises(SettingsError, match="is a link to"):
        report(tmp_path, [], Console(quiet=True))


def test_shapes_are_made_where_somebody_typed_it_and_not_where_a_file_says(run_settings, tmp_path, monkeypatch):
    now = OmegaConf.merge(NOW, {"paths": {"data_root": "data"}})

    def makes(saved_root, *overrides):
        saved = {"logger": {}, "trainer": {"max_steps": 1, "max_flops": None}, "choices": {}}
        saved["paths"] = {"data_root": saved_root, "makes_shapes": True}
        return changed_values(saved, [*overrides, "resume=runs/theirs"], now, Path("runs/theirs"))[0]["paths"][
            "makes_shapes"
        ]

    elsewhere = str(tmp_path / "elsewhere")
    assert not makes(elsewhere)
    assert makes("data")
    with monkeypatch.context() as patch:  # a link there may have come with the run
        patch.chdir(tmp_path)
        Path("data").symlink_to(tmp_path.parent)
        assert not makes("data")
        assert makes("data", "paths.data_root=data")
    assert makes("data", f"paths.data_root={elsewhere}")
    settings = run_settings(f"paths.data_root={elsewhere}", "paths.makes_shapes=false")
    pipeline = build_pipeline(network_settings(settings))
    with pytest.raises(DataMissingError):
        open_data(settings, pipeline)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", [".${MICRODIT_TRUST}./x", "$SECRET", "~root", "a/b", "..", "%h"])
def test_no_logger_makes_a_folder_elsewhere_or_of_a_secret(name):
    for setting in ("name", "version"):
        with pytest.raises(SettingsError, match="no run's file may say"):
            resumed(
                {"logger": {"tensorboard": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger", setting: name}}}
            )
    with pytest.raises(SettingsError, match="no run's file may say"):
        resumed({"logger": {"wandb": WANDB | {"settings": {"name": "1"}}}})
    trust()
    assert os.environ.get("MICRODIT_TRUST") != ""


def test_only_weights_and_biases_logs_into_its_folder(tmp_path):
    board = {"_target_": "microdit.training.callbacks.loggers.PatientTensorBoard", "name": "", "version": "wandb"}
    with pytest.raises(SettingsError, match="no run's file may say"):
        resumed({"logger": {"tensorboard": board}})
    assert resumed({"logger": {"wandb": WANDB | {"name": "wandb"}}})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"domains": ["../../elsewhere"]}, r"data_mix\.embedded\.domains\.0 must be real or synthetic, got"),
        (
            {"counts": {"../train": 5}},
            r"data_mix\.embedded\.counts has no setting '\.\./train'.* It knows: train, val",
        ),
        (
            {"counts": {"train": 10**12}},
            r"data_mix\.embedded\.counts\.train must be a whole .* to 100,000,000, got 1000",
        ),
        ({"processes": 100_000}, "processes=100000: from 1 to"),
        ({"skill_shares": {"juggling": 1}}, r"data_mix\.embedded\.skill_shares has no setting 'juggling'"),
        ({"skill_shares": {"counting": -1}}, r"skill_shares\.counting must be a number from 0 to 1,000, got -1"),
        ({"skill_shares": {"counting": 0}}, "skill_shares: none is above 0"),
        ({"name": "../elsewhere"}, r"name=\.\./elsewhere: up to 40 small letters"),
    ],
)
def test_embedded_shapes_that_cannot_be_meant_are_refused(settings, told):
    with pytest.raises(SettingsError, match=told):
        bind(EmbeddedShapes, settings, "data_mix.embedded")


@pytest.mark.parametrize("setting", ["reading.num_workers=100000", "reading.num_workers=-1"])
def test_threads_by_the_thousand_are_refused(run_settings, setting):
    with pytest.raises(SettingsError, match="from 0 to 256"):
        run_settings(setting)


def test_processes_by_the_thousand_are_refused(run_settings):
    with pytest.raises(SettingsError, match=r"processes on .* cores cannot be meant"):
        check_hardware(run_settings("trainer.devices=100000").trainer)


def test_three_question_marks_are_told_with_their_file():
    with pytest.raises(SettingsError, match=r"config\.yaml: Missing mandatory value: a"):
        resumed({"a": "???"})


def test_a_place_is_told_on_one_line(capsys):
    """Else a file could say there what the program did not."""
    tell_places([("init_from", "theirs\nfinished, and nothing was read", Place())], Path("config.yaml"))
    assert capsys.readouterr().out == "as config.yaml says: init_from=theirs finished, and nothing was read\n"


def test_a_name_of_dots_is_no_class():
    with pytest.raises(SettingsError, match=r"_target_ 'microdit\.\.\..*\.\.\. cannot be imported"):
        locate("microdit" + "." * 5_000, Metric)


def test_an_embedded_folder_of_something_else_is_told_with_the_setting():
    encoder = OpenClipTextEncoder("embedded:shapes_kl", 16, 8)
    with pytest.raises(FileNotFoundError, match=r"text_encoder\.weights=embedded:shapes_kl: .* no open_clip_config"):
        encoder.load()


def test_prompts_longer_than_a_sheet_are_refused(run_settings):
    saved = run_settings().config
    samples = {**saved["callbacks"]["samples"], "prompts": ["a circle", "x" * 3_000]}
    with pytest.raises(SettingsError, match=r"callbacks\.samples\.prompts\.1 must be a text, 0 to 2,000 of them"):
        training_settings({**saved, "callbacks": {"samples": samples}}, Path("runs"), {})


def test_a_class_that_nobody_can_make_is_refused():
    with pytest.raises(SettingsError, match="does not make a Metric"):
        locate("microdit.evaluation.metric.Metric", Metric)


@pytest.mark.parametrize("told", ["seed: 1\n2: 3\n", "seed: 1\nmodel: {true: 1}\n", "seed: [{null: 1}]\n"])
def test_names_in_settings_are_texts(tmp_path, told):
    (tmp_path / "config.yaml").write_text(told)
    with pytest.raises(DamagedFileError, match=r"config\.yaml is damaged \(.* is no text"):
        read_config(tmp_path)


def test_a_stage_whose_own_config_is_of_another_kind_is_told_with_its_file(run_settings, tmp_path):
    (tmp_path / "config.yaml").write_text("resolution_stage: 3\n")
    with pytest.raises(SettingsError, match=r"config\.yaml"):
        check_it_fits(run_settings().config, tmp_path)
