"""What may be chosen of captions, transparency and squares is what comes out, and what is left out is told."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from microdit.data.prepare.choices import CLEANING, Pick, background_of, views_of, with_chosen_captions
from microdit.data.prepare.convert import prepare
from microdit.data.prepare.duplicates import WithoutDuplicates, originals_of
from microdit.data.prepare.encoding import Encoders
from microdit.data.prepare.look import sheet_of
from microdit.data.prepare.plan import Recipe
from microdit.data.sources.captioned import CaptionedImage, Source, Unreadable, Unwanted
from microdit.data.sources.folder import FolderSource
from microdit.data.sources.images import CENTRE, square_views
from microdit.data.stream.opening import open_mix
from microdit.encoders import PixelAutoencoder, WordsTextEncoder
from microdit.kinds import SettingsError


def encoders() -> Encoders:
    return Encoders(PixelAutoencoder(), WordsTextEncoder(channels=8, length=6), "pixel", "words")


def as_file(pixels: np.ndarray, kind: str = "png", **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


def noise(seed: int, height: int = 32, width: int = 48) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.parametrize(
    ("step", "before", "after"),
    [
        ("person", "<PERSON> and <person> at sea", "person and person at sea"),
        ("html", "a &amp;amp; b<br/>c <b>bold</b> 3 < 4", "a & b c  bold  3 < 4"),
        ("html", "<PERSON> sings", "person sings"),
        ("web", "see https://a.org/x?y=1 or www.b.com by me@c.org #sunset @anna", "see   or   by   sunset anna"),
        ("spaces", " a  boat ,\n red . ", "a boat, red."),
        ("lower", "A Boat", "a boat"),
    ],
)
def test_each_step_of_cleaning(step: str, before: str, after: str) -> None:
    assert CLEANING[step](before) == after


@pytest.mark.parametrize("step", CLEANING)
@pytest.mark.parametrize("part", ["a.", "a@", "<a", "&a", "@-", "' ", "www", "\n ,"])
def test_cleaning_takes_one_pass_of_a_long_caption(step: str, part: str) -> None:
    CLEANING[step](part * 200_000)


@pytest.mark.parametrize(
    ("pick", "captions"),
    [("all", ["two", "the longest", "a"]), ("first", ["two"]), ("longest", ["the longest"]), ("shortest", ["a"])],
)
def test_which_of_several_captions_are_encoded(pick: Pick, captions: list[str]) -> None:
    chosen = with_chosen_captions(CaptionedImage("key", b"", ["two", "the longest", "a"]), [], pick)
    assert isinstance(chosen, CaptionedImage)
    assert chosen.captions == captions


def test_a_random_caption_is_that_of_the_picture_and_all_come_up() -> None:
    items = [CaptionedImage(f"{number}", b"", ["a", "b", "c"]) for number in range(60)]
    first, again = ([with_chosen_captions(item, [], "random") for item in items] for _ in range(2))
    assert first == again
    assert {tuple(item.captions) for item in first if isinstance(item, CaptionedImage)} == {("a",), ("b",), ("c",)}


def test_a_caption_of_which_nothing_is_left_is_none() -> None:
    told = with_chosen_captions(CaptionedImage("key", b"", ["https://a.org", " <br> "]), ["html", "web"], "all")
    assert isinstance(told, Unreadable)
    assert "nothing is left of it after clean_captions" in told.reason


@pytest.mark.parametrize(("transparency", "colour"), [("white", 255), ("black", 0), ("#808080", 128)])
def test_what_transparent_places_become(transparency: str, colour: int) -> None:
    clear = as_file(np.zeros((8, 8, 4), np.uint8))
    squares = square_views(clear, [8], background=background_of("key", transparency))
    assert (squares[8] == colour).all()


def test_a_random_background_is_that_of_the_picture() -> None:
    colours = [background_of(str(number), "random") for number in range(20)]
    assert len(set(colours)) > 15
    assert colours == [background_of(str(number), "random") for number in range(20)]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"transparency": "purplish"}, "transparency=purplish is no colour"),
        ({"clean_captions": ["htlm"]}, "clean_captions.0 must be a text of person, html"),
        ({"crops": 0}, "crops must be a whole number from 1"),
        ({"captions": "last"}, "captions must be all or first"),
    ],
)
def test_what_cannot_be_chosen_is_told(settings: dict[str, object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Recipe([8], **settings)  # type: ignore[arg-type]


def test_squares_lie_in_the_picture_and_are_mirrored() -> None:
    pixels = noise(1)
    views = views_of("key", crops=3, flips=True)
    assert views[0] == CENTRE
    assert len(set(views)) == 6
    squares = square_views(as_file(pixels), [16], views=views)[16]
    assert squares.shape == (6, 16, 16, 3)
    np.testing.assert_array_equal(squares[3:], squares[:3, :, ::-1])
    assert np.abs(squares[1].astype(int) - squares[0]).mean() > 5


def folder_of(root: Path, pictures: list[bytes]) -> FolderSource:
    root.mkdir()
    for number, content in enumerate(pictures):
        (root / f"{number}.png").write_bytes(content)
        (root / f"{number}.txt").write_text(f"caption {number}")
    return FolderSource(str(root), shard_size=4)


def test_training_takes_another_square_in_each_epoch_and_validation_the_centre(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "pictures", [as_file(noise(number)) for number in range(4)])
    done = prepare(source, tmp_path / "data/a/train", encoders(), Recipe([16], crops=2, flips=True))
    mix = [{"name": "a", "folder": str(done.folder), "weight": "size"}]
    settings = {"resolution_px": 16, "seed": 0, "autoencoder": "pixel", "text_encoder": "words"}
    shown = open_mix(mix, **settings, shuffle=False).__getitems__([0, 1, 2, 3])["latents"]  # type: ignore[arg-type]
    for number, latents in enumerate(shown):
        centre = square_views(as_file(noise(number)), [16])[16][0]
        assert np.abs((latents.float().permute(1, 2, 0).numpy() + 1) * 127.5 - centre).max() < 1
    drawn = open_mix(mix, **settings).__getitems__(range(4 * 30))["latents"]  # type: ignore[arg-type]
    assert len({latents.numpy().tobytes() for latents in drawn}) == 4 * 4


def test_copies_of_a_picture_are_left_out_wherever_they_lie(tmp_path: Path) -> None:
    pictures = [noise(number) for number in range(6)]
    small = np.asarray(Image.fromarray(pictures[0]).resize((36, 24)))
    brighter = np.clip(pictures[1].astype(int) + 6, 0, 255).astype(np.uint8)
    flat = np.full((32, 32, 3), 90, np.uint8)
    files = [
        *map(as_file, pictures),
        as_file(small),
        as_file(brighter, "jpeg", quality=90),
        as_file(flat),
        as_file(flat),
    ]
    source = folder_of(tmp_path / "pictures", [*files, b"no picture"])
    with ThreadPoolExecutor(1) as pool:
        alone = WithoutDuplicates(source, 12, tmp_path / "hashes", pool, [0])
        items = [item for shard in range(len(alone.shards())) for item in alone.read(shard)]
        assert [item.key for item in items if isinstance(item, Unwanted)] == ["6.png", "7.png"]
        assert [item.reason for item in items if isinstance(item, Unwanted)] == [
            "it looks like number 0 of pictures from 0",
            "it looks like number 1 of pictures from 0",
        ]
        done = prepare(alone, tmp_path / "data/a/train", encoders(), Recipe([16]))
    assert (done.written, done.filtered, done.broken, done.found) == (8, 2, 1, 11)


@pytest.mark.parametrize("bits", [0, 3, 8, 31])
def test_originals_are_those_of_comparing_every_pair(bits: int) -> None:
    chance = np.random.default_rng(bits)
    hashes = chance.integers(0, 256, (40, 32), np.uint8)
    hashes = np.concatenate([hashes, hashes[:20]])
    for row in hashes[40:]:
        for flipped in chance.choice(256, chance.integers(0, bits + 3), replace=False):
            row[flipped // 8] ^= 1 << flipped % 8
    expected = np.full(60, -1)
    for later in range(60):
        for earlier in range(later):
            apart = np.unpackbits(hashes[later] ^ hashes[earlier]).sum()
            if expected[later] < 0 and expected[earlier] < 0 and apart <= bits:
                expected[later] = earlier
    np.testing.assert_array_equal(originals_of(hashes, bits), expected)
    assert (expected >= 0).any()


def test_a_sheet_shows_samples_of_all_of_a_source_and_tells_what_is_left_out(tmp_path: Path) -> None:
    source: Source = folder_of(tmp_path / "pictures", [*(as_file(noise(n)) for n in range(9)), b"no picture"])
    sheet, told = sheet_of(source, Recipe([16]))
    assert "9 samples from 3 of 3 input shards" in told
    assert "1 left out: no picture of a format" in told
    assert min(sheet.size) > 200
    with pytest.raises(SettingsError, match="nothing to look at: 48 x 32 px: a side shorter"):
        sheet_of(source, Recipe([16], min_side_px=4000))
