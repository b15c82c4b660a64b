"""Captions as small random models of transformers' own classes read them, saved and loaded from a folder, offline."""

import json
import shutil

import pytest
import torch
from small_language_models import CHANNELS, WORDS, small_model, write_small_language_model

from microdit.encoders import TextEncoder, TransformersTextEncoder
from microdit.kinds import SettingsError

KINDS = ["qwen3", "t5gemma", "siglip"]
CAPTIONS = ["a red ball above the blue box", "green cube", "a big box of many many red and blue and green ball and box"]
LENGTH = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: write_small_language_model(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def encoder_of(folder, **changes):
    return TransformersTextEncoder(**({"weights": str(folder), "channels": CHANNELS, "length": LENGTH} | changes))


def hidden_states(folder, kind, **inputs):
    """All layers of the model as transformers itself reads it whole."""
    model = type(small_model(kind)).from_pretrained(folder).eval()
    text = {"qwen3": "model", "t5gemma": "model.encoder", "siglip": "text_model"}[kind]
    with torch.no_grad():
        told = model.get_submodule(text)(**inputs, output_hidden_states=True)
    return told.last_hidden_state, told.hidden_states


def test_embeddings_are_what_transformers_gives_for_the_caption_alone(folders, kind):
    encoder = encoder_of(folders[kind])
    tokens = encoder.tokenize(CAPTIONS)
    embeddings = encoder.encode_tokens(tokens)
    assert isinstance(encoder, TextEncoder)
    assert encoder.masks_padding
    assert (embeddings.shape, embeddings.dtype) == ((3, LENGTH, CHANNELS), torch.float32)
    for row, of_row, end in zip(tokens, embeddings, encoder.lengths(tokens).tolist(), strict=True):
        # SigLIP was trained to read padding: its tower sees all positions.
        read = row.clamp(min=0) if kind == "siglip" else row[:end]
        expected, _ = hidden_states(folders[kind], kind, input_ids=read[None])
        torch.testing.assert_close(of_row[:end], expected[0, :end], atol=1e-5, rtol=1e-5)
        assert not of_row[end:].any()


@pytest.mark.parametrize("kind", ["qwen3", "t5gemma"])
def test_more_room_for_padding_changes_nothing(folders, kind):
    short, long = encoder_of(folders[kind]), encoder_of(folders[kind], length=300)
    torch.testing.assert_close(long.encode(CAPTIONS[:2])[:, :LENGTH], short.encode(CAPTIONS[:2]), atol=1e-6, rtol=1e-6)
    assert not long.encode(CAPTIONS[:2])[:, LENGTH:].any()


@pytest.mark.parametrize("kind", ["qwen3", "t5gemma"])
def test_captions_longer_than_clips_are_read_to_their_end(folders, kind):
    encoder = encoder_of(folders[kind], length=128)
    one, other = encoder.encode(["red " * 100 + "ball", "red " * 100 + "box"])
    assert not torch.allclose(one[100], other[100])


def test_a_chosen_layer_is_that_layer(folders, kind):
    tokens = encoder_of(folders[kind]).tokenize(["a red ball above the blue box and the green cube of many ball"])
    assert (tokens >= 0).all()
    _, layers = hidden_states(folders[kind], kind, input_ids=tokens)
    for layer in (0, 1, -2):
        found = encoder_of(folders[kind], layer=layer).encode_tokens(tokens)
        torch.testing.assert_close(found, layers[layer], atol=1e-5, rtol=1e-5)


def test_a_caption_that_is_cut_still_ends_in_end_of_text(folders):
    tokens = encoder_of(folders["t5gemma"]).tokenize(CAPTIONS)
    assert WORDS[tokens[2, -1]] == "<eos>"
    assert encoder_of(folders["t5gemma"]).lengths(tokens).tolist() == [8, 3, LENGTH]


def test_the_name_of_a_special_token_in_a_caption_is_text(folders):
    (tokens,) = encoder_of(folders["qwen3"]).tokenize(["red <eos> ball <pad> box"])
    assert not {WORDS.index("<eos>"), WORDS.index("<pad>")} & set(tokens.tolist())


def test_an_empty_caption_is_the_caption_of_zeros_where_it_has_no_token(folders):
    encoder = encoder_of(folders["qwen3"])
    tokens = encoder.tokenize(["", "red"])
    assert encoder.lengths(tokens).tolist() == [1, 1]
    empty, red = encoder.encode_tokens(tokens)
    assert not empty.any()
    assert red[0].any()


def test_captions_are_lower_case_where_it_was_trained_with_such(folders):
    encoder = encoder_of(folders["siglip"], lower_case=True)
    assert torch.equal(encoder.tokenize(["A Red BALL"]), encoder.tokenize(["a red ball"]))
    assert not torch.equal(encoder_of(folders["siglip"]).tokenize(["A Red BALL"]), encoder.tokenize(["a red ball"]))


def test_decoders_and_image_towers_are_left_out(folders, kind):
    names = [name for name, _ in encoder_of(folders[kind]).load().named_parameters()]
    assert not [name for name in names if "vision" in name or "decoder" in name or "lm_head" in name]


def test_tokenizing_does_not_read_the_model(folders, kind):
    encoder = encoder_of(folders[kind])
    encoder.lengths(encoder.tokenize(CAPTIONS))
    assert encoder.frozen.loaded == ()


def test_missing_weights_are_told_with_where_they_are_from_and_how_to_point_to_a_folder(tmp_path):
    encoder = TransformersTextEncoder("Qwen/Qwen3-0.6B", channels=1024, length=256)
    assert encoder.frozen.loaded == ()
    with pytest.raises(FileNotFoundError, match=r"Qwen/Qwen3-0\.6B.*text_encoder\.weights=FOLDER.*hf download"):
        encoder.load()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json.*text_encoder\.weights=FOLDER"):
        encoder_of(tmp_path).load()


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("qwen3", {"channels": 32}, r"16 channels wide.*text_encoder\.channels=16"),
        ("qwen3", {"length": 4096}, r"reads 512 tokens.*text_encoder\.length=512"),
        ("qwen3", {"layer": 4}, r"text_encoder\.layer=4: .* has 3 blocks"),
        ("siglip", {"length": 64}, r"reads 12 tokens"),
    ],
)
def test_what_was_declared_otherwise_is_refused(folders, kind, changes, told):
    with pytest.raises(SettingsError, match=told):
        encoder_of(folders[kind], **changes).load()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "gpt2"}, "is not that of a qwen3 or t5gemma or siglip or siglip2"),
        ({"auto_map": {"AutoModel": "theirs.Model"}}, "is not that of a"),
        ({"attn_implementation": "someone/kernel"}, "a program from elsewhere"),
        ({"quantization_config": {}}, "quantised"),
        ({"num_hidden_layers": 4}, r"lacks \d+ of the network's weights"),
    ],
)
def test_a_folder_that_is_something_else_is_refused(folders, tmp_path, changes, told):
    copy = tmp_path / "copy"
    shutil.copytree(folders["qwen3"], copy)
    config = json.loads((copy / "config.json").read_text()) | changes
    if "num_hidden_layers" in changes:
        config.pop("layer_types", None)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsError, match=told):
        encoder_of(copy).load()


def test_a_tokenizer_without_padding_is_refused_where_padding_is_read(folders, tmp_path):
    shutil.copytree(folders["siglip"], tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(SettingsError, match="names no pad_token"):
        encoder_of(tmp_path / "copy").load()
