"""Resizing before Inception, feature networks, and distances between features."""

import inspect
import pickle
import re
from itertools import combinations, product
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import NoTrainInceptionV3

from microdit.build import SettingsError
from microdit.evaluation import discrepancy as module
from microdit.evaluation import features
from microdit.evaluation.discrepancy import discrepancy
from microdit.evaluation.features import RESIZES, DinoFeatures, InceptionFeatures, clean, without_filter
from microdit.evaluation.frechet import frechet_distances


def by_pillow(picture: np.ndarray, side: int) -> np.ndarray:
    """As clean-fid does it: each channel in float32, not rounded."""
    channels = [Image.fromarray(channel.astype(np.float32)) for channel in picture]
    return np.stack([np.asarray(one.resize((side, side), Image.Resampling.BICUBIC)) for one in channels])


def test_the_clean_resize_is_pillows_bicubic_at_a_hundred_sizes():
    random = np.random.default_rng(0)
    for _ in range(100):
        height, width, side = random.integers(8, 320, 3)
        picture = random.integers(0, 256, (3, height, width), dtype=np.uint8)
        ours = clean(torch.from_numpy(picture)[None], int(side))[0].numpy()
        assert np.abs(ours - by_pillow(picture, int(side))).max() < 1e-4


def test_the_ways_to_resize_give_other_pictures():
    pictures = torch.randint(0, 256, (1, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    for one, other in combinations(RESIZES.values(), 2):
        assert (one(pictures, 299) - other(pictures, 299)).abs().mean() > 1
        assert (one(pictures, 20) - other(pictures, 20)).abs().mean() > 1
    for resize in RESIZES.values():
        assert torch.equal(resize(pictures, 64), pictures.float())  # the same size: nothing to do


@pytest.mark.parametrize(("height", "width", "side"), [(64, 64, 99), (40, 25, 31), (90, 301, 60), (1, 7, 5)])
def test_torch_fidelitys_resize_is_that_of_tensorflow_1(height, width, side):
    """As its kernel goes from pixel to pixel."""
    pixels = np.random.default_rng(side).integers(0, 256, (3, height, width), dtype=np.uint8)
    expected = np.zeros((3, side, side))
    for y, x in product(range(side), range(side)):
        (top, down), (left, across) = (divmod(at * size / side, 1) for at, size in ((y, height), (x, width)))
        rows, columns = (int(top), min(int(top) + 1, height - 1)), (int(left), min(int(left) + 1, width - 1))
        upper, lower = (pixels[:, row, list(columns)] @ (1 - across, across) for row in rows)
        expected[:, y, x] = upper * (1 - down) + lower * down
    ours = without_filter(torch.from_numpy(pixels)[None], side)[0].numpy()
    assert np.abs(ours - expected).max() < 1e-2  # places are computed in float32, as there


class StandIn(nn.Module):
    """Inception's layers by name; each does nothing but the last, which takes the mean."""

    def __init__(self, *given: object) -> None:
        super().__init__()
        for name in InceptionFeatures.LAYERS:
            setattr(self, name, nn.Identity())
        self.AvgPool = nn.AdaptiveAvgPool2d(1)


def test_inception_sees_what_was_resized_at_299_px_in_minus_one_to_one(monkeypatch):
    monkeypatch.setattr(features, "NoTrainInceptionV3", StandIn)
    monkeypatch.setattr(features, "find_spec", lambda name: name)
    pictures = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0)).byte()
    for name, resize in RESIZES.items():
        network = InceptionFeatures(name, None)  # type: ignore[arg-type]
        assert network.name == name
        assert torch.allclose(network(pictures), (resize(pictures, 299).mean((2, 3)) - 128) / 128, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", pickle.dumps(np.array), pickle.dumps([1])])
def test_a_file_that_is_no_inception_is_told(content, monkeypatch, tmp_path):
    monkeypatch.setattr(features, "find_spec", lambda name: name)
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(SettingsError, match=r"features\.weights: .*weights does not hold the Inception"):
        InceptionFeatures("clean", str(tmp_path / "weights"))


def test_inceptions_layers_are_those_that_torchmetrics_goes_through():
    source = inspect.getsource(NoTrainInceptionV3._torch_fidelity_forward)
    assert (*InceptionFeatures.LAYERS, "fc") == tuple(re.findall(r"x = self\.(\w+)\(x\)", source))


class Few(nn.Module):
    """Eight features of a picture, in the place of Inception's 2,048."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 5, 3)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.convolution(clean(pictures, 32) / 255).square().mean((2, 3))


def two_thousand() -> list[torch.Tensor]:
    """Pictures in two sets."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(1000, 3, 16, 16, generator=generator) * scale for scale in (1.0, 0.8)]


def test_the_distance_of_two_thousand_pictures_is_that_of_torch_fidelitys_formula():
    first, second = two_thousand()
    network = Few()
    ours = frechet_distances(network, {"it": [first]}, [second])
    with torch.no_grad():
        a, b = (network((each * 255).round().byte()).double().numpy() for each in (first, second))
    # As torch-fidelity's fid_statistics_to_metric has it.
    root = np.real(sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)))
    traces = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False)) - 2 * np.trace(root)
    theirs = np.square(a.mean(0) - b.mean(0)).sum() + traces
    assert ours["it"] == pytest.approx(theirs, rel=1e-3)
    assert theirs > 1e-3


def test_the_distance_of_two_thousand_pictures_is_torch_fidelitys_own_with_its_resize_and_a_network_of_its_class():
    fidelity = pytest.importorskip("torch_fidelity", reason="compares with torch-fidelity: pip install 'microdit[fid]'")
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())

    class Theirs(FeatureExtractorBase):
        def __init__(self, name, features_list, **_) -> None:
            super().__init__(name, features_list)
            self.layers = layers.requires_grad_(False)

        @staticmethod
        def get_provided_features_list():
            return ("32",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "32"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, x):
            resized = interpolate_bilinear_2d_like_tensorflow1x(x.float(), size=(40, 40), align_corners=False)
            return (self.layers((resized - 128) / 128),)

    class Ours(nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return layers((without_filter(pictures, 40) - 128) / 128)

    fidelity.register_feature_extractor("of_our_test", Theirs)
    first, second = two_thousand()
    inputs = [(each * 255).round().byte() for each in (first, second)]
    theirs = fidelity.calculate_metrics(
        input1=TensorDataset(inputs[0]), input2=TensorDataset(inputs[1]), feature_extractor="of_our_test", fid=True,
        cuda=False, verbose=False, cache=False, save_cpu_ram=True,
    )["frechet_inception_distance"]  # fmt: skip
    assert theirs > 1e-3
    assert frechet_distances(Ours(), {"it": [first]}, [second])["it"] == pytest.approx(theirs, rel=1e-3)


class TensorDataset(torch.utils.data.Dataset):
    """Pictures one by one, as torch-fidelity takes them."""

    def __init__(self, pictures: torch.Tensor) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.pictures[number]


def test_inception_has_torch_fidelitys_features_where_it_resizes_as_that_does(tmp_path):
    pytest.importorskip("torch_fidelity", reason="compares with torch-fidelity: pip install 'microdit[fid]'")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    with patch("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url") as downloaded:
        downloaded.return_value = nn.Module().state_dict()
        with patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
            random = FeatureExtractorInceptionV3("inception", ["2048"])
    for name, parameter in random.named_parameters():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(parameter)  # else next to nothing comes out of so many layers
    torch.save(random.state_dict(), tmp_path / "inception.pth")
    pictures = torch.randint(0, 256, (3, 3, 64, 80), generator=torch.Generator().manual_seed(0)).byte()
    (theirs,) = random(pictures)
    ours = InceptionFeatures("torch_fidelity", str(tmp_path / "inception.pth"))(pictures)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-4 * theirs.std()


@pytest.fixture(scope="module")
def dino(tmp_path_factory) -> str:
    transformers = pytest.importorskip(
        "transformers", reason="DINOv2 is of transformers: pip install 'microdit[judges]'"
    )
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    small = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(small).save_pretrained(folder)
    return str(folder)


def test_dinos_features_are_the_class_token_of_a_picture_at_224_px(dino):
    from transformers import BitImageProcessor, Dinov2Model

    noise = torch.randint(0, 100, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0))
    pictures = (noise + torch.tensor([0, 150])[:, None, None, None]).byte()
    prepare = BitImageProcessor(
        size={"height": 224, "width": 224}, do_center_crop=False, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225], resample=3,
    )  # fmt: skip
    pixels = prepare(list(pictures), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = Dinov2Model.from_pretrained(dino)(pixel_values=pixels).pooler_output
    network = DinoFeatures(dino, "tiny")
    assert network.num_features == 16
    assert torch.allclose(network(pictures), expected, atol=2e-3)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_a_dino_that_is_missing_or_another_network_is_told(dino, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Set features\.weights=FOLDER to a folder with config\.json and model"
    ):
        DinoFeatures(str(tmp_path / "none"), "none")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(SettingsError, match="is not that of a dinov2"):
        DinoFeatures(str(tmp_path), "other")


def test_the_discrepancy_is_that_of_all_pairs(monkeypatch):
    random = np.random.default_rng(0)
    a, b = random.normal(0, 1, (13, 4)), random.normal(0.5, 1, (9, 4))
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b)]

    def kernel(x, y):
        return np.mean([np.exp(-np.square(one - other).sum() / 200) for one, other in product(x, y)])

    expected = 1000 * (kernel(unit[0], unit[0]) + kernel(unit[1], unit[1]) - 2 * kernel(*unit))
    assert expected > 0.1
    for at_once in (2048, 4):
        monkeypatch.setattr(module, "AT_ONCE", at_once)
        assert discrepancy(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected, rel=1e-9)
    assert discrepancy(torch.tensor(a), 3 * torch.tensor(a)) == pytest.approx(0, abs=1e-9)
