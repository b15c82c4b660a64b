"""What pictures are worth, from a column of a table to pictures that are asked to be worth more."""

import csv
import io
import math

import numpy as np
import pytest
import torch
from compositions import plain
from PIL import Image
from rich.console import Console
from run_fixtures import SMALL

from microdit.checkpoints.reading import latest_checkpoint, network_weights
from microdit.data.prepare.convert import prepare
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.plan import Recipe
from microdit.data.shards.description import MismatchError
from microdit.data.sources.table import TableSource
from microdit.encoders import PixelAutoencoder, WordsTextEncoder
from microdit.kinds import SettingsError
from microdit.pipeline import LatentDiffusion, build_pipeline
from microdit.training.data import open_data
from microdit.training.draws import TRAINING, Samples
from microdit.training.run import network_settings, train
from microdit.training.settings import training_settings

COUNT = 12
CHOICES = {"autoencoder": "pixel", "text_encoder": "words"}


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), np.uint8)).save(file, "png")
    return file.getvalue()


def prepared(root, quality_column):
    """Latents of a table whose picture n is worth n / 11; returns what was told of the training split."""
    (root / "pictures").mkdir(parents=True)
    with (root / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "caption", "rank"])
        for number in range(COUNT):
            (root / f"pictures/{number}.png").write_bytes(picture(number))
            table.writerow([f"pictures/{number}.png", "a caption", number / (COUNT - 1)])
        table.writerow(["pictures/0.png", "a caption", "unknown"])
    source = TableSource(str(root / "table.csv"), quality_column=quality_column)
    encoders = Encoders(PixelAutoencoder(), WordsTextEncoder(), "pixel", "words")
    prepare(source, root / "my_pictures" / "validation", encoders, Recipe([16]))
    return prepare(source, root / "my_pictures" / "train", encoders, Recipe([16]))


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    root = tmp_path_factory.mktemp("ranked")
    return root, prepared(root, "rank")


def settings_of(root, output, *overrides):
    small = [one for one in SMALL if "data_mix" not in one]
    told = ["data_mix=my_pictures", "trainer.max_steps=2", "callbacks.samples.prompts=[]", f"paths.data_root={root}"]
    return training_settings(plain(*small, *told, *overrides), output, CHOICES)


QUALITY = ["+model.quality_dropout=0.25", "sampling.quality=1.0"]


def test_rows_without_a_quality_are_broken_and_say_so(ranked):
    summary = ranked[1]
    assert (summary.written, summary.broken) == (COUNT, 1)
    assert "no quality: 'rank' holds" in str(summary)
    assert "not a number from 0 to 1" in str(summary)


def test_training_reads_each_pictures_own_and_a_share_is_not_told(ranked, tmp_path):
    settings = settings_of(ranked[0], tmp_path, *QUALITY)
    stream, validation = open_data(settings, build_pipeline(network_settings(settings)))
    batch = Samples(stream, 0, TRAINING, 2, 0.1, quality_dropout=0.25).__getitems__(range(400))
    told = batch["quality"]
    assert told.dtype == torch.float32
    assert abs(told.isnan().float().mean() - 0.25) < 0.07
    assert not torch.equal(told.isnan(), batch["drop_caption"])
    worth = {round(float(value), 3) for value in told[~told.isnan()]}
    assert worth == {round(float(np.float16(number / (COUNT - 1))), 3) for number in range(COUNT)}
    by_picture = {}
    for latents, quality in zip(batch["latents"], told.tolist(), strict=True):
        if not math.isnan(quality):
            by_picture.setdefault(latents.numpy().tobytes(), set()).add(quality)
    assert {len(each) for each in by_picture.values()} == {1}
    assert "quality" not in validation.__getitems__([0])


def test_a_run_keeps_that_it_draws_at_the_best_and_draws_so(ranked, wake, tmp_path):
    train(settings_of(ranked[0], tmp_path, *QUALITY), Console(quiet=True))
    assert '"quality": 1.0' in (tmp_path / "pipeline.json").read_text()
    pipeline = LatentDiffusion.load(tmp_path)
    wake(pipeline.dit)  # after two steps gates are all but closed

    def drawn(**told):
        return pipeline.generate("a caption", seed=0, num_inference_steps=2, **told)

    assert torch.equal(drawn(), drawn(quality=1.0))
    assert not torch.equal(drawn(), drawn(quality=0.0))


def test_without_the_setting_quality_in_the_data_changes_nothing_and_data_without_it_is_refused_with_it(
    ranked, tmp_path
):
    assert prepared(tmp_path / "plain", None).written == COUNT + 1
    folders = [tmp_path / "one", tmp_path / "other"]
    train(settings_of(ranked[0], folders[0]), Console(quiet=True))
    assert not [name for name in network_weights(latest_checkpoint(folders[0]), "raw") if "q_embedder" in name]
    with pytest.raises(SettingsError, match="trained without the quality"):
        LatentDiffusion.load(folders[0]).generate("a caption", quality=1.0)
    with pytest.raises(MismatchError, match=r"holds no quality of its pictures.*source\.quality_column"):
        train(settings_of(tmp_path / "plain", folders[1], *QUALITY), Console(quiet=True))
