"""Runs with representation alignment: exactly another's at weight 0, resumed to the bit, the same divided."""

import io
import math
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from microdit.checkpoints.reading import latest_checkpoint, network_weights, read_checkpoint
from microdit.data.prepare.foreign import index_foreign
from microdit.data.shards.description import MismatchError
from microdit.pipeline import LatentDiffusion
from microdit.runs.folder import checkpoints_of
from microdit.training.run import train

REPA = ["representation=repa", "representation.hidden_ratio=0.75", "representation.weight=1.0"]
STEPS = ["trainer.max_steps=6", "trainer.checkpoint_every_n_steps=3", "callbacks.samples.prompts=[]"]


def run(settings, checkpoint=None):
    return train(settings, Console(quiet=True), checkpoint)


def weights(folder):
    return network_weights(latest_checkpoint(folder), "raw")


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that is not interrupted, made once."""
    return tmp_path_factory.mktemp("whole") / "run"


def test_at_weight_zero_a_run_is_exactly_one_without(run_settings, logged, tmp_path):
    run(run_settings(*STEPS, output=tmp_path / "none"))
    run(run_settings(*STEPS, *REPA, "representation.weight=0", output=tmp_path / "zero"))
    assert logged(tmp_path / "zero") == logged(tmp_path / "none")
    assert same(weights(tmp_path / "zero"), weights(tmp_path / "none"))


@pytest.mark.parametrize("representation", ["repa", "irepa"])
def test_the_features_are_learnt_and_what_is_saved_draws_without_them(run_settings, logged, tmp_path, representation):
    longer = ["trainer.max_steps=40", f"representation={representation}", "resolution_stage.learning_rate=0.003"]
    record = run(run_settings(*longer, output=tmp_path))
    extra = list(logged(tmp_path, "train/loss_extra").values())
    assert sum(extra[-5:]) / 5 < sum(extra[:5]) / 5 - 0.05  # minus half a cosine
    assert record["train/flops"] == record["total_flops"]
    pipeline = LatentDiffusion.load(tmp_path)
    assert pipeline.generate("a red circle", num_inference_steps=2).isfinite().all()
    state = read_checkpoint(latest_checkpoint(tmp_path))["state_dict"]
    assert any(name.startswith("alignment.projection") for name in state)


def test_a_run_is_resumed_to_the_bit_and_ends_to_align_where_it_is_told(run_settings, logged, tmp_path):
    told = [*STEPS, *REPA, "representation.until=0.7"]
    record = run(run_settings(*told, output=tmp_path / "whole"))
    half = run_settings(*told, output=tmp_path / "half")
    run(half)
    for late in checkpoints_of(tmp_path / "half")[1:]:
        late.unlink()
    run(half, latest_checkpoint(tmp_path / "half"))
    assert same(weights(tmp_path / "half"), weights(tmp_path / "whole"))
    assert logged(tmp_path / "half", "train/loss_extra") == logged(tmp_path / "whole", "train/loss_extra")
    assert sorted(logged(tmp_path / "whole", "train/loss_extra")) == [0, 1, 2, 3, 4]  # of six steps
    assert record["train/flops"] == record["total_flops"]


@pytest.mark.parametrize(("strategy", "share"), [("ddp", 4), ("ddp", 2), ("fsdp", 2)])
def test_it_is_the_run_of_one_process(run_settings, train_in_ranks, logged, whole, tmp_path, strategy, share):
    chosen = [*STEPS, *REPA, "representation.until=0.7", "optimizer=adamw_short", "resolution_stage.learning_rate=1e-4"]
    chosen += ["resolution_stage.global_batch_size=8"]
    if not whole.exists():
        run(run_settings(*chosen, output=whole))
    divided = [f"trainer.strategy={strategy}", "trainer.devices=2", f"trainer.device_batch_size={share}"]
    train_in_ranks(run_settings(*chosen, *divided, output=tmp_path))
    assert logged(tmp_path) == pytest.approx(logged(whole), abs=1e-6)
    expected, found = weights(whole), weights(tmp_path)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_data_without_features_is_refused_with_the_way_out(run_settings, tmp_path):
    run(run_settings("trainer.max_steps=1", output=tmp_path / "plain"))  # makes the shapes
    settings = run_settings(*REPA, output=tmp_path / "run")
    plain = next(settings.data_root.glob("shapes_synthetic/train/latents-pixel-words-16px"))
    sources = f"data_mix.sources=[{{name: x, folder: {plain}}}]"
    with pytest.raises(
        MismatchError, match=r"holds no features, and training aligns with shapes_v1: .*features=shapes"
    ):
        run(run_settings(*REPA, sources, "data_mix.kinds=null", output=tmp_path / "run"))
    # One number in place of eighty would be compared with each of them, without a word.
    for shape in ((1, 8, 8), (3, 8, 8), (80,), (8, 8)):
        folder = with_features(plain, tmp_path / f"of_{'_'.join(map(str, shape))}", shape)
        sources = f"data_mix.sources=[{{name: x, folder: {folder}}}]"
        instead = re.escape(f"holds the features of a network that is not named, of the shape {list(shape)} instead of")
        with pytest.raises(MismatchError, match=instead + r" \[80, rows, columns\], .*features=shapes"):
            run(run_settings(*REPA, sources, "data_mix.kinds=null", output=tmp_path / "run"))


def with_features(plain: Path, folder: Path, shape: tuple[int, ...]) -> Path:
    """A folder of latents as it comes from elsewhere, with features of this shape."""
    folder.mkdir()
    header = np.lib.format.header_data_from_array_1_0(np.zeros(shape, np.float16))
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, header)
    content.write(bytes(2 * math.prod(shape)))
    for tar in plain.glob("*.tar"):
        with tarfile.open(tar) as old, tarfile.open(folder / tar.name, "w") as new:
            for member in old:
                new.addfile(member, old.extractfile(member))
                if member.name.endswith(".caption.npy"):
                    more = tarfile.TarInfo(member.name.replace("caption", "features"))
                    more.size = len(content.getvalue())
                    new.addfile(more, io.BytesIO(content.getvalue()))
    index_foreign(folder)
    return folder
