import subprocess
import sys

import open_clip
import pytest
import torch
from small_clip import TEXT, write_small_clip

from microdit.encoders import OpenClipTextEncoder, TextEncoder

CAPTIONS = ["a red ball above a blue box", "", "one " * 100]


@pytest.fixture(scope="module", params=[False, True], ids=["clip", "custom_text_clip"])
def any_folder(request, tmp_path_factory):
    return write_small_clip(tmp_path_factory.mktemp("clip"), custom_text=request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_clip(tmp_path_factory.mktemp("clip"))


def test_pooled_and_projected_it_is_what_open_clip_gives(any_folder):
    reference = open_clip.create_model(f"local-dir:{any_folder}").eval()
    encoder = OpenClipTextEncoder(str(any_folder), channels=32)
    tokens = encoder.tokenize(CAPTIONS)
    embeddings = encoder.encode_tokens(tokens)
    assert embeddings.shape == (3, 77, 32)
    at_end = embeddings[torch.arange(3), encoder.lengths(tokens) - 1]
    projection = getattr(reference, "text", reference).text_projection
    with torch.no_grad():
        torch.testing.assert_close(at_end @ projection, reference.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_tokens_are_those_of_clip_and_lengths_reach_the_end_of_text(folder):
    encoder = OpenClipTextEncoder(f"local-dir:{folder}", channels=32)
    tokens = encoder.tokenize(CAPTIONS)
    assert torch.equal(tokens, open_clip.tokenize(CAPTIONS))
    assert encoder.lengths(tokens).tolist() == [9, 2, 77]


def test_later_words_do_not_reach_earlier_positions(folder):
    encoder = OpenClipTextEncoder(str(folder), channels=32)
    one, other = encoder.encode(["a red ball", "a red house"])
    assert torch.equal(one[:3], other[:3])
    assert not torch.allclose(one[3], other[3])


def test_the_image_tower_is_dropped(folder):
    tower = OpenClipTextEncoder(str(folder), channels=32).load()
    assert not [name for name, _ in tower.named_parameters() if "visual" in name]
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_a_lower_precision_gives_nearly_the_same_float32_embeddings(folder):
    exact = OpenClipTextEncoder(str(folder), channels=32).encode(CAPTIONS)
    coarse = OpenClipTextEncoder(str(folder), channels=32, dtype="bfloat16").encode(CAPTIONS)
    assert coarse.dtype == torch.float32
    assert not torch.equal(exact, coarse)
    assert (exact - coarse).pow(2).mean() < 1e-3 * exact.pow(2).mean()


def test_tokenizing_does_not_read_the_tower(folder):
    encoder = OpenClipTextEncoder(str(folder), channels=32)
    encoder.lengths(encoder.tokenize(CAPTIONS))
    assert encoder.frozen.loaded == ()


def test_construction_needs_no_weights_and_first_use_does(tmp_path):
    encoder = OpenClipTextEncoder(str(tmp_path / "absent"))
    assert isinstance(encoder, TextEncoder)
    assert (encoder.channels, encoder.length) == (1024, 77)
    with pytest.raises(FileNotFoundError, match=r"text_encoder\.weights=FOLDER"):
        encoder.encode(["a caption"])


@pytest.mark.parametrize("declared", [{"channels": 64}, {"channels": 32, "length": 32}])
def test_a_tower_of_other_size_is_refused(folder, declared):
    with pytest.raises(ValueError, match=r"has 32 channels and 77 positions, but the configuration declares"):
        OpenClipTextEncoder(str(folder), **declared).load()


def test_a_tower_without_causal_mask_is_refused(tmp_path):
    folder = write_small_clip(tmp_path, custom_text=True, text_cfg=TEXT | {"no_causal_mask": True})
    with pytest.raises(ValueError, match="not a causal CLIP text tower"):
        OpenClipTextEncoder(str(folder), channels=32).load()


def test_random_weights_are_never_used_for_missing_ones(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match=r"has no open_clip_model\.safetensors"):
        OpenClipTextEncoder(str(tmp_path), channels=32).load()


def test_a_folder_with_broken_weights_is_refused_by_name(folder, tmp_path):
    (tmp_path / "open_clip_config.json").write_bytes((folder / "open_clip_config.json").read_bytes())
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=str(tmp_path)):
        OpenClipTextEncoder(str(tmp_path), channels=32).load()


def test_importing_the_encoders_imports_no_model_library():
    program = "import sys, microdit.encoders; print([m for m in ('diffusers', 'open_clip') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
