import csv
import io
import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from caption_texts import caption_texts
from PIL import Image
from small_features import BrightPlaces

from microdit.build import SettingsError
from microdit.data.prepare import convert
from microdit.data.prepare.convert import prepare
from microdit.data.prepare.embedded import EmbeddedShapes, ensure_shapes
from microdit.data.prepare.encoding import Encoders, encode_captions
from microdit.data.prepare.plan import PlanChangedError, Recipe, share_of
from microdit.data.shards.description import MismatchError, read_description
from microdit.data.sources.captioned import CaptionedImage
from microdit.data.sources.embedded_shapes import ShapesSource
from microdit.data.sources.folder import FolderSource
from microdit.data.sources.held_out import PartOfSource
from microdit.data.sources.images import BrokenImageError
from microdit.data.stream.opening import DataMissingError, open_mix
from microdit.data.stream.stream import LatentStream
from microdit.encoders import PixelAutoencoder, WordsTextEncoder
from microdit.files import DamagedFileError, NoRoomError

LATENTS = "latents-pixel-words-16px"


def encoders() -> Encoders:
    return Encoders(PixelAutoencoder(), WordsTextEncoder(channels=8, length=6), "pixel", "words")


def opened(folder: Path, **options: object) -> LatentStream:
    settings: dict = {"resolution_px": 16, "seed": 0, "autoencoder": "pixel", "text_encoder": "words", "shuffle": False}
    return open_mix([{"name": "data", "folder": str(folder)}], **settings | options)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def picture(number: int, width: int = 24, height: int = 20) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), number, np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """40 sound pictures whose grey is their number; among them one too small, one damaged, one without caption."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:03d}.png").write_bytes(picture(number))
        (folder / f"{number:03d}.txt").write_text(f"number {number}")
    (folder / "small.png").write_bytes(picture(0, 15, 15))
    (folder / "small.txt").write_text("small")
    (folder / "damaged.png").write_bytes(picture(0)[:45])
    (folder / "damaged.txt").write_text("damaged")
    (folder / "silent.png").write_bytes(picture(0))
    return folder


def run(pictures: Path, root: Path, shard_of: str = "1/1", **recipe: object):
    source = FolderSource(str(pictures), shard_size=5)
    return prepare(source, root / "mine" / "train", encoders(), Recipe([16], batch_size=3, **recipe), shard_of)  # type: ignore[arg-type]


def in_process(work: Callable[[], object]) -> int:
    """Start `work` in a process of its own; returns its id."""
    process = os.fork()
    if process:
        return process
    try:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    finally:
        os._exit(1)


def test_pictures_become_latents_with_their_captions(pictures: Path, tmp_path: Path) -> None:
    summary = run(pictures, tmp_path / "data")
    stream = opened(tmp_path / "data/mine/train")
    assert len(stream) == summary.written == 40
    batch = stream.__getitems__(range(40))
    expected = torch.arange(40).view(-1, 1, 1, 1) / 255 * 2 - 1
    assert torch.allclose(batch["latents"].float(), expected.expand(-1, 3, 16, 16), atol=1e-3)
    assert caption_texts(stream, range(40)) == [f"number {number}" for number in range(40)]
    words = WordsTextEncoder(channels=8, length=6).encode(["number 7"])[0]
    assert torch.equal(batch["captions"][7], words.half())


@pytest.mark.parametrize("link", ["mine", "mine/train", f"mine/train/{LATENTS}", f"mine/train/{LATENTS}/index"])
def test_no_link_takes_what_is_prepared_out_of_the_data_root(pictures: Path, tmp_path: Path, link: str) -> None:
    place, elsewhere = tmp_path / "data" / link, tmp_path / "elsewhere"
    place.parent.mkdir(parents=True)
    elsewhere.mkdir()
    place.symlink_to(elsewhere)
    with pytest.raises(SettingsError, match=r"leads to .*elsewhere.* stays there: name that place itself"):
        run(pictures, tmp_path / "data")
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("link", ["shapes_synthetic", "shapes_synthetic/train/images-16px"])
def test_no_link_takes_embedded_shapes_out_of_the_data_root(tmp_path: Path, link: str) -> None:
    place, elsewhere = tmp_path / "data" / link, tmp_path / "elsewhere"
    place.parent.mkdir(parents=True)
    elsewhere.mkdir()
    place.symlink_to(elsewhere)
    with pytest.raises(SettingsError, match=r"leads to .*elsewhere"):
        ensure_shapes(tmp_path / "data", EmbeddedShapes(["synthetic"], {"train": 12}), encoders(), Recipe([16]))
    assert not list(elsewhere.iterdir())


def test_a_data_root_may_be_a_link_and_so_may_what_stays_in_it(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "flowers").mkdir(parents=True)
    (tmp_path / "disk" / "mine").symlink_to("flowers")
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    assert run(pictures, tmp_path / "data").written == 40
    assert (tmp_path / "disk/flowers/train" / LATENTS / "dataset.json").is_file()


def test_every_rejected_picture_is_listed_with_its_reason(pictures: Path, tmp_path: Path) -> None:
    summary = run(pictures, tmp_path / "data")
    assert (summary.written, summary.filtered, summary.broken, summary.missing) == (40, 1, 2, 0)
    with (summary.folder / "rejects.csv").open(newline="") as file:
        rejects = {row["key"]: (row["kind"], row["reason"]) for row in csv.DictReader(file)}
    assert rejects["small.png"] == ("filtered", "15 x 15 px: a side shorter than 16 px")
    assert rejects["damaged.png"][0] == rejects["silent.png"][0] == "broken"
    assert "no caption" in rejects["silent.png"][1]
    assert "40 written, 1 filtered, 2 broken" in str(summary)


def test_eight_jobs_in_any_order_write_what_one_does(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "one")
    jobs = [f"{job}/8" for job in range(1, 9)]
    random.Random(0).shuffle(jobs)
    missing = [run(pictures, tmp_path / "eight", job).missing for job in jobs]
    assert missing[-1] == 0
    assert missing[0] > 0
    assert contents(tmp_path / "eight") == contents(tmp_path / "one")


def test_killed_at_any_moment_and_run_again_the_bytes_are_the_same(pictures: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    os.waitpid(in_process(lambda: run(pictures, tmp_path / "undisturbed")), 0)
    longest = (time.monotonic() - started) / 3
    chance, kills, folder = random.Random(0), 0, tmp_path / "killed_0"
    while kills < 20:
        process = in_process(lambda folder=folder: run(pictures, folder))
        time.sleep(chance.uniform(0, longest))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        if not (folder / "mine/train" / LATENTS / "dataset.json").exists():
            kills += 1
            continue
        run(pictures, folder)
        assert contents(folder) == contents(tmp_path / "undisturbed")
        # It came to its end before the kill: kill the next one sooner.
        longest, folder = longest / 2, folder.with_name(f"killed_{int(folder.name[7:]) + 1}")
    run(pictures, folder)
    assert contents(folder) == contents(tmp_path / "undisturbed")


def test_features_of_the_pictures_are_one_more_field_of_a_folder_of_its_own(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "plain")
    with_features = replace(encoders(), features=BrightPlaces(), features_settings={"_target_": "tests.Bright"})
    source, split = FolderSource(str(pictures), shard_size=5), tmp_path / "data" / "mine" / "train"
    prepare(source, split, with_features, Recipe([16, 8], batch_size=3))
    (folder,) = split.iterdir()
    assert folder.name == "latents-pixel-words-8-16px-bright"
    described = read_description(folder / "dataset.json")
    assert (described.features, described.features_settings) == ("bright", {"_target_": "tests.Bright"})
    found, plain = opened(split, features="bright"), opened(tmp_path / "plain" / "mine" / "train")
    batch, without = found[7], plain[7]
    assert batch["features"].shape == (1, 2, 4, 4)
    grey = (batch["latents"].float().mean() + 1) / 2  # of one tone
    torch.testing.assert_close(batch["features"][0, 0].float(), grey.expand(4, 4), atol=2e-3, rtol=0)
    assert (batch["features"][0, 1] == 1).all()
    assert torch.equal(batch["latents"], without["latents"])
    assert "features" not in without
    assert "features" not in opened(split)[7]  # whoever asks for none reads none


def test_features_that_are_not_there_are_named_with_the_command(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path)
    with pytest.raises(DataMissingError, match=r"16 px and features bright\. .* features=bright"):
        opened(tmp_path / "mine" / "train", features="bright")
    (folder,) = (tmp_path / "mine" / "train").iterdir()
    with pytest.raises(MismatchError, match=r"holds no features, and training aligns with bright: .*features=bright"):
        opened(folder, features="bright")


def test_two_processes_at_once_do_no_harm(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "alone")
    processes = [in_process(lambda: run(pictures, tmp_path / "together")) for _ in range(3)]
    assert [os.waitpid(process, 0)[1] for process in processes] == [0, 0, 0]
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


def test_what_is_there_is_not_made_again(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "data")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert run(pictures, tmp_path / "data").images == 0
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_other_settings_in_the_same_folder_are_refused(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "data")
    with pytest.raises(PlanChangedError, match=r"\(recipe\.min_side_px was null, is now 20\).*another name"):
        run(pictures, tmp_path / "data", min_side_px=20)
    (pictures / "new.png").write_bytes(picture(9))
    with pytest.raises(PlanChangedError, match=r"source\.pictures was 43, is now 44"):
        run(pictures, tmp_path / "data")


def test_trimmed_captions_are_smaller_and_padded_when_read(pictures: Path, tmp_path: Path) -> None:
    full = run(pictures, tmp_path / "full")
    trimmed = run(pictures, tmp_path / "trimmed", caption_storage="trimmed")
    assert full.bytes_a_sample["captions full"] == trimmed.bytes_a_sample["captions full"] == 6 * 8 * 2
    assert full.bytes_a_sample["captions trimmed"] == trimmed.bytes_a_sample["captions trimmed"] == 3 * 8 * 2
    both = [opened(tmp_path / kind / "mine/train").__getitems__(range(40)) for kind in ("full", "trimmed")]
    # The words encoder pads with zeros, so here nothing is lost.
    assert torch.equal(both[0]["captions"], both[1]["captions"])


def test_latents_that_are_not_finite_never_enter(pictures: Path, tmp_path: Path) -> None:
    class Overflowing(PixelAutoencoder):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            latents = super().encode(images)
            return torch.where(images.mean((1, 2, 3), keepdim=True) < 3 / 255, latents * 1e9, latents)

    broken = Encoders(Overflowing(), WordsTextEncoder(8, 6), "pixel", "words")
    summary = prepare(FolderSource(str(pictures)), tmp_path / "data/mine/train", broken, Recipe([16]))
    assert summary.written == 37
    assert "not finite" in (summary.folder / "rejects.csv").read_text()


def test_the_description_tells_what_the_data_is(pictures: Path, tmp_path: Path) -> None:
    description = read_description(run(pictures, tmp_path / "data").folder / "dataset.json")
    assert (description.name, description.split, description.samples) == ("mine", "train", 40)
    assert (description.autoencoder, description.latent_channels, description.downscale) == ("pixel", 3, 1)
    assert (description.caption_length, description.caption_width, description.caption_storage) == (6, 8, "full")


def test_pictures_with_several_captions_keep_them_all(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(picture(7))
    (tmp_path / "pictures/a.json").write_text(json.dumps({"caption": ["one", "two", "three"]}))
    run(tmp_path / "pictures", tmp_path / "data")
    stream = opened(tmp_path / "data/mine/train", shuffle=True)
    assert set(caption_texts(stream, range(40))) == {"one", "two", "three"}


def test_captions_of_a_batch_are_encoded_as_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, calls = encoders(), []
    encode = mine.text_encoder.encode_tokens
    monkeypatch.setattr(mine.text_encoder, "encode_tokens", lambda tokens: calls.append(len(tokens)) or encode(tokens))
    taken = encode_captions(mine, [f"caption {number}" for number in range(64 * 100)], "full")
    next(taken)
    assert calls == [256]
    assert len([*taken]) == 64 * 100 - 1


@pytest.mark.parametrize("content", ["[", "[1]", '{"input": 3}', '{"input": "a", "rejects": [3]}', "9" * 5_000])
@pytest.mark.parametrize("name", ["plan.json", "index/00000.json"])
def test_what_was_kept_of_a_preparation_and_is_damaged_is_named(
    pictures: Path, tmp_path: Path, name: str, content: str
) -> None:
    folder = run(pictures, tmp_path / "data").folder
    (folder / "00000.tar").touch()  # newer than the description
    (folder / name).write_text(content)
    with pytest.raises(
        (DamagedFileError, SettingsError, PlanChangedError), match=rf"{folder}.*(delete that folder|remove {folder})"
    ):
        run(pictures, tmp_path / "data")


def test_batches_of_large_files_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "LARGEST_BATCH", 25)
    items = [CaptionedImage(str(number), b"x" * size, ["a"]) for number, size in enumerate([10, 10, 10, 30, 10, 1, 1])]
    with ThreadPoolExecutor(1) as pool:
        found = [[place for place, _, _ in batch] for batch in convert.decoded(iter(items), Recipe([16]), pool)]
    assert found == [[0, 1, 2], [3], [4, 5, 6]]


def test_pictures_whose_decoding_has_not_begun_are_not_waited_for_after_ctrl_c(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, begun = [], Event()

    def decode(*arguments: Any) -> None:
        decoded.append(arguments)
        begun.set()
        time.sleep(0.1)
        raise BrokenImageError("slow")

    def stop(*arguments: Any) -> None:
        begun.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "square_views", decode)
    monkeypatch.setattr(convert, "decoded", lambda items, recipe, pool: stop(*[pool.submit(decode) for _ in range(60)]))
    with pytest.raises(KeyboardInterrupt):
        run(pictures, tmp_path / "data")
    assert len(decoded) < 10


def test_a_plan_whose_parts_are_written_as_one_name_is_another_plan(pictures: Path, tmp_path: Path) -> None:
    folder = run(pictures, tmp_path / "data").folder
    (folder / "00000.tar").touch()  # newer than the description
    plan = json.loads((folder / "plan.json").read_text())
    source = {f"source.{name}": value for name, value in plan.pop("source").items()}
    (folder / "plan.json").write_text(json.dumps(plan | source))
    with pytest.raises(PlanChangedError, match=r"source\.kind was null"):
        run(pictures, tmp_path / "data")


@pytest.mark.parametrize(("text", "numbers"), [("1/1", [0, 1, 2, 3, 4]), ("2/3", [1, 4]), ("3/8", [2]), ("8/8", [])])
def test_jobs_share_the_shards(text: str, numbers: list[int]) -> None:
    assert list(share_of(5, text)) == numbers


@pytest.mark.parametrize("text", ["", "3", 3, "0/8", "9/8", "a/b", "1/2/3"])
def test_a_share_that_is_none_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="shard_of must be JOB/JOBS"):
        share_of(5, text)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"resolutions_px": 32}, "resolutions_px must be a list .*, 1 to 100 of them, got 32"),
        ({"resolutions_px": []}, "resolutions_px must be a list .*, 1 to 100 of them"),
        ({"resolutions_px": [32, 32]}, "different sizes"),
        ({"resolutions_px": [32], "batch_size": 0}, "^batch_size must be a whole number from 1 to"),
        ({"resolutions_px": [32], "decode_threads": 0}, "^decode_threads must be a whole number from 1 to"),
        ({"resolutions_px": [32], "caption_storage": "short"}, "full or trimmed"),
    ],
)
def test_a_recipe_that_would_write_nothing_is_refused(recipe: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**recipe)


def test_a_resolution_that_the_autoencoder_cannot_divide_is_refused(pictures: Path, tmp_path: Path) -> None:
    autoencoder = PixelAutoencoder()
    autoencoder.downscale = 2
    halving = Encoders(autoencoder, WordsTextEncoder(8, 6), "halving", "words")
    with pytest.raises(ValueError, match=r"\[15\] must be multiples of 2"):
        prepare(FolderSource(str(pictures)), tmp_path / "data", halving, Recipe([15, 16]))
    assert not (tmp_path / "data").exists()


def test_names_that_are_not_utf_8_are_prepared_and_listed(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for name, content in (("b\udce9", picture(7)), ("bad\udce9", b"")):
        (tmp_path / f"pictures/{name}.png").write_bytes(content)
        (tmp_path / f"pictures/{name}.txt").write_text("words")
    source = PartOfSource(FolderSource(str(tmp_path / "pictures")), 0.0, held_out=False)
    summary = prepare(source, tmp_path / "data/mine/train", encoders(), Recipe([16]))
    assert (summary.written, summary.broken) == (1, 1)
    assert caption_texts(opened(tmp_path / "data/mine/train"), [0]) == ["words"]
    assert "bad\\udce9.png" in (summary.folder / "rejects.csv").read_text(encoding="utf-8")
    assert prepare(source, tmp_path / "data/mine/train", encoders(), Recipe([16])).images == 0


def test_what_is_listed_as_broken_is_the_same_in_every_run(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        (tmp_path / f"pictures/{number}.jpg").write_bytes(b"no picture" * number)
        (tmp_path / f"pictures/{number}.txt").write_text("words")
    held = [run(tmp_path / "pictures", tmp_path / name) for name in ("one", "two")]
    assert held[0].broken == 4
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_full_disk_is_named_and_running_again_goes_on(pictures: Path, tmp_path: Path) -> None:
    run(pictures, tmp_path / "undisturbed")
    first = tmp_path / "undisturbed/mine/train" / LATENTS / "00000.tar"

    def with_little_room(limit: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            run(pictures, tmp_path / "full")
        except NoRoomError as error:
            os._exit(7 if "Make room and run the same command again" in str(error) and "full" in str(error) else 1)

    for limit in (100, 1000, first.stat().st_size - 1, first.stat().st_size):
        process = in_process(lambda limit=limit: with_little_room(limit))
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == (7 if limit < first.stat().st_size else 0)
    assert contents(tmp_path / "full") == contents(tmp_path / "undisturbed")


def test_other_shares_of_skills_are_other_training_scenes_and_the_same_validation(tmp_path: Path) -> None:
    for name, shares in (("usual", None), ("counted", {"counting": 1.0})):
        wanted = EmbeddedShapes(["synthetic"], {"train": 12, "validation": 6}, shares, name, processes=1)
        ensure_shapes(tmp_path, wanted, encoders(), Recipe([16]))
    usual, counted = (contents(tmp_path / f"{name}_synthetic/validation") for name in ("usual", "counted"))
    tars = [name for name in usual if name.endswith(".tar")]
    assert len(tars) == 2
    assert [usual[tar] for tar in tars] == [counted[tar] for tar in tars]
    with pytest.raises(PlanChangedError):
        ensure_shapes(tmp_path, EmbeddedShapes(["synthetic"], {"train": 12}, name="counted"), encoders(), Recipe([16]))


def test_the_embedded_shapes_are_made_once_and_survive_being_killed(tmp_path: Path) -> None:
    wanted = EmbeddedShapes(["synthetic"], {"train": 60, "validation": 6}, processes=2)

    def make(root: Path) -> None:
        ensure_shapes(root, wanted, encoders(), Recipe([16]))

    make(tmp_path / "whole")
    chance = random.Random(1)
    for _ in range(4):
        process = in_process(lambda: make(tmp_path / "killed"))
        time.sleep(chance.uniform(0, 0.2))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    both = [in_process(lambda: make(tmp_path / "killed")) for _ in range(2)]
    assert [os.waitpid(process, 0)[1] for process in both] == [0, 0]
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    stream = opened(tmp_path / "whole/shapes_synthetic/train")
    drawn = next(iter(ShapesSource("synthetic", count=1, side_px=16).read(0)))
    pixels = np.asarray(Image.open(io.BytesIO(drawn.image)))  # type: ignore[union-attr]
    latents = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(stream[0]["latents"][0].float(), latents, atol=1e-3)
    assert len(opened(tmp_path / "whole/shapes_synthetic/validation")) == 6
