"""Features of a picture's places: as many whatever its size, and of what is there."""

import torch

from microdit.data.shapes import render, sample
from microdit.evaluation.shapes.features import shapes_features
from microdit.representation.features import DinoPatchFeatures, ShapesPatchFeatures


def pictures(side_px: int, count: int = 2) -> torch.Tensor:
    scenes = [sample("evaluation", "synthetic", number).scene for number in range(count)]
    drawn = [torch.from_numpy(render(scene, side_px).copy()) for scene in scenes]
    return torch.stack(drawn).permute(0, 3, 1, 2).contiguous()


def test_features_of_shapes_have_one_place_for_each_four_pixels_of_32():
    network = ShapesPatchFeatures()
    small, large = (network.patch_features(pictures(side)) for side in (32, 128))
    assert small.shape == large.shape == (2, network.channels, 8, 8)
    # The same scenes in more pixels are the same, but for the edges.
    assert torch.nn.functional.cosine_similarity(small, large).mean() > 0.8
    assert torch.nn.functional.cosine_similarity(small, large.flip(0)).mean() < 0.8


def test_what_changes_in_a_corner_changes_there():
    network = ShapesPatchFeatures()
    before = pictures(32, 1)
    after = before.clone()
    after[:, :, :4, :4] = 255 - after[:, :, :4, :4]
    change = (network.patch_features(after) - network.patch_features(before))[0, :48].abs().sum(0)
    assert change[0, 0] == change.max() > 0
    assert (change[5:, 5:] == 0).all()


def test_the_feature_network_of_the_distance_gives_what_it_gave():
    features = shapes_features()(pictures(32))
    assert features.shape == (2, 64)
    normalised = shapes_features().normalised(pictures(32))
    torch.testing.assert_close(normalised, (pictures(32).float() / 255 - 0.5) / 0.25)


def test_a_dino_gives_the_tokens_of_its_patches(tmp_path):
    import pytest

    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14, "image_size": 28}
    made = transformers.Dinov2Model(transformers.Dinov2Config(**sizes)).eval()
    made.save_pretrained(tmp_path)
    network = DinoPatchFeatures(str(tmp_path), "small", 16, side_px=42)
    given = pictures(42)
    features = network.patch_features(given)
    assert features.shape == (2, 16, 3, 3)
    mean, deviation = (torch.tensor(x).view(3, 1, 1) for x in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    tokens = made(pixel_values=(given - mean) / deviation).last_hidden_state
    torch.testing.assert_close(features[:, :, 1, 2], tokens[:, 1 + 5], atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match=r"has 16 channels and patches of 14 px: set features\.channels=16"):
        DinoPatchFeatures(str(tmp_path), "small", 24, side_px=42).load()
