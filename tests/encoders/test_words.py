import json
import subprocess
import sys

import pytest
import torch

from microdit.encoders import TextEncoder, WordsTextEncoder
from microdit.encoders.words import END_OF_TEXT, PADDING, word_token


def test_a_word_keeps_its_embedding_in_another_process():
    program = (
        "from microdit.encoders import WordsTextEncoder\n"
        "e = WordsTextEncoder(8, 4).encode(['A red ball'])\n"
        "print(e.flatten().tolist())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    here = WordsTextEncoder(8, 4).encode(["A red ball"])
    assert json.loads(elsewhere) == here.flatten().tolist()


def test_embeddings_do_not_change_between_releases():
    # Stored captions and checkpoints depend on these numbers.
    assert word_token("red") == 2941416306605685317
    expected = torch.tensor([-0.172024, -0.034785, 0.321411, -0.341006, 0.587352, 1.179734, 0.0, 1.414214])
    torch.testing.assert_close(WordsTextEncoder(8, 3).encode(["red"])[0, 0], expected, atol=1e-5, rtol=0)


def test_case_and_punctuation_do_not_matter():
    encoder = WordsTextEncoder()
    torch.testing.assert_close(encoder.encode(["A red-green ball, left."]), encoder.encode(["a RED green ball left"]))


def test_different_words_have_nearly_orthogonal_vectors():
    vectors = WordsTextEncoder(channels=512, length=2).encode([f"word{i}" for i in range(50)])[:, 0, :384]
    cosine = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    assert (cosine - torch.eye(50)).abs().max() < 0.3


def test_the_same_word_elsewhere_differs_by_its_position_alone():
    first, second = WordsTextEncoder(channels=64, length=8).encode(["red above blue", "blue above red"])
    assert torch.equal(first[0, :48], second[2, :48])
    assert not torch.equal(first[0, 48:], second[2, 48:])
    assert torch.equal(first[1], second[1])


def test_the_position_of_a_word_can_be_read_off():
    embeddings = WordsTextEncoder(channels=64, length=24).encode([" ".join(f"w{i}" for i in range(23))])[0]
    distances = torch.cdist(embeddings[:, 48:], embeddings[:, 48:]) + 10 * torch.eye(24)
    assert distances.min() > 0.5


def test_a_longer_encoder_agrees_with_a_shorter_one():
    short, long = WordsTextEncoder(16, 4), WordsTextEncoder(16, 40)
    assert torch.equal(short.encode(["red blue"])[0], long.encode(["red blue"])[0, :4])


def test_embeddings_have_unit_variance():
    encoder = WordsTextEncoder(channels=256, length=24)
    caption = " ".join(f"word{i}" for i in range(23))
    embeddings = encoder.encode([caption])
    assert embeddings.pow(2).mean().item() == pytest.approx(1, abs=0.05)


def test_padding_is_zero_and_does_not_count():
    encoder = WordsTextEncoder(channels=16, length=6)
    tokens = encoder.tokenize(["one two", "", "one two three four five"])
    assert encoder.lengths(tokens).tolist() == [3, 1, 6]
    embeddings = encoder.encode_tokens(tokens)
    assert embeddings[0, 3:].abs().max() == 0
    assert embeddings[1, 1:].abs().max() == 0
    assert embeddings[1, 0].abs().max() > 0


def test_a_long_caption_is_cut_and_still_ends():
    encoder = WordsTextEncoder(channels=16, length=4)
    tokens = encoder.tokenize(["a b c d e f"])
    assert tokens[0, 3] == END_OF_TEXT
    assert torch.equal(tokens, encoder.tokenize(["a b c"]))


def test_a_caption_of_twenty_words_fits_the_default_length():
    encoder = WordsTextEncoder()
    assert encoder.lengths(encoder.tokenize([" ".join(f"w{i}" for i in range(23))])) == 24


def test_token_ids_are_positive_and_never_reserved():
    tokens = WordsTextEncoder(length=200).tokenize([" ".join(f"w{i}" for i in range(199))])[0, :-1]
    assert tokens.dtype == torch.int64
    assert tokens.min() > max(PADDING, END_OF_TEXT)
    assert len(tokens.unique()) == 199


def test_words_of_any_script_are_words():
    encoder = WordsTextEncoder(length=5)
    assert encoder.lengths(encoder.tokenize(["красный шар", "赤い 丸", "crème brûlée"])).tolist() == [3, 3, 3]


def test_no_captions_give_no_embeddings():
    assert WordsTextEncoder(channels=16, length=4).encode([]).shape == (0, 4, 16)


def test_nothing_is_saved_or_trained():
    encoder = WordsTextEncoder()
    assert isinstance(encoder, TextEncoder)
    assert not encoder.state_dict()
    assert not list(encoder.parameters())
    assert not encoder.encode(["red"]).requires_grad


@pytest.mark.parametrize(("channels", "length", "word"), [(7, 24, "channels"), (12, 24, "channels"), (64, 1, "length")])
def test_impossible_sizes_are_refused(channels, length, word):
    with pytest.raises(ValueError, match=word):
        WordsTextEncoder(channels=channels, length=length)


@pytest.mark.parametrize("size", [{"length": 2_000_000}, {"channels": 8_000_000}])
def test_captions_of_millions_of_numbers_are_refused_before_they_take_memory(size):
    with pytest.raises(ValueError, match="cannot be meant"):
        WordsTextEncoder(**size)
