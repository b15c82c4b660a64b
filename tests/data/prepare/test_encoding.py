"""How many captions were cut is known, whatever the text encoder."""

import pytest

from microdit.data.prepare.encoding import CaptionEncoder, Encoders, encode_captions
from microdit.encoders import PixelAutoencoder, WordsTextEncoder


def cut(encoder: CaptionEncoder, *captions: str) -> list[bool]:
    mine = Encoders(PixelAutoencoder(), encoder, "pixel", "text")
    return [short for _, _, short in encode_captions(mine, captions, "full", batch_size=2)]


@pytest.mark.parametrize(
    ("caption", "is_cut"),
    [
        ("", False),
        ("one two three four five", False),
        ("one two three four five.", False),
        ("one two three four five ...  ", False),
        ("one two three four five six", True),
        ("one two three four five " * 50, True),
        ("a b c d e" + " e" * 30, True),
        ("one two three four " + "x" * 90, False),
        ("one two three four five " + "x" * 90, True),
    ],
)
def test_a_caption_is_cut_where_its_last_word_is_not_read(caption: str, is_cut: bool) -> None:
    assert cut(WordsTextEncoder(channels=8, length=6), "short", caption, "short") == [False, is_cut, False]
