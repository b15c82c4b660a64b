"""Settings become objects only when every name in them is known and of the right kind."""

import os
import re
import subprocess
import sys

import pytest

from microdit.build import build, locate, trust
from microdit.encoders.pixel import PixelAutoencoder
from microdit.encoders.protocols import Autoencoder, TextEncoder
from microdit.kinds import SettingsError
from microdit.masking.deferred import Deferred
from microdit.masking.token_path import TokenPath

PIXEL = "microdit.encoders.pixel.PixelAutoencoder"
WORDS = "microdit.encoders.words.WordsTextEncoder"


def a_pixel_autoencoder(sigma_data: float) -> PixelAutoencoder:
    """A function whose annotation says what it makes."""
    return PixelAutoencoder(sigma_data)


def no_annotation():
    return PixelAutoencoder()


def test_settings_become_the_object_they_describe():
    built = build({"_target_": PIXEL, "sigma_data": 0.7}, Autoencoder)
    assert isinstance(built, PixelAutoencoder)
    assert built.sigma_data == 0.7


def test_extra_arguments_come_beside_the_settings():
    words = build({"_target_": WORDS, "channels": 16}, TextEncoder, length=5)
    assert (words.channels, words.length) == (16, 5)


def test_the_settings_stay_as_they_were():
    settings = {"_target_": PIXEL, "sigma_data": 0.7}
    build(settings, Autoencoder)
    assert settings == {"_target_": PIXEL, "sigma_data": 0.7}


def test_an_unknown_key_is_refused_with_the_nearest_and_all_valid_ones():
    with pytest.raises(SettingsError, match=r"'chanels'; did you mean 'channels'\? It knows: channels, length"):
        build({"_target_": WORDS, "chanels": 16}, TextEncoder)


def test_a_missing_target_is_named():
    with pytest.raises(SettingsError, match=r"need a _target_ that names a TokenPath"):
        build({"sigma_data": 0.7}, TokenPath)


@pytest.mark.parametrize(
    "target",
    [
        "microdit.encoders.nothing.Pixel",
        "microdit.encoders.pixel.Nothing",
        "microdit.",
        "microdit.encoders.pixel.torch.nn.Linear",
    ],
)
def test_a_target_that_does_not_exist_is_refused(target):
    with pytest.raises(SettingsError, match=re.escape(f"_target_ {target!r} cannot be imported")):
        build({"_target_": target}, Autoencoder)


@pytest.mark.parametrize(
    "target",
    [
        "microdit.masking.deferred.Deferred",  # a class, but of another kind
        "microdit.encoders.pixel.torch",  # a module
        "microdit.grid.prompt_grid",  # a function that makes something else
        "microdit.encoders.pixel.Autoencoder",  # of this kind, but what the module has imported
        "torch.optim.AdamW",
    ],
)
def test_a_target_of_another_kind_is_refused(target):
    with pytest.raises(SettingsError, match=re.escape(f"_target_ {target} does not make a Autoencoder")):
        build({"_target_": target}, Autoencoder)


def test_a_function_that_does_not_say_what_it_makes_is_refused(monkeypatch):
    monkeypatch.setattr("microdit.encoders.pixel.no_annotation", no_annotation, raising=False)
    with pytest.raises(SettingsError, match="does not make"):
        build({"_target_": "microdit.encoders.pixel.no_annotation"}, Autoencoder)


@pytest.fixture
def somebodys(tmp_path, monkeypatch) -> str:
    """A package that lies where Python looks, and says so when it is imported."""
    (tmp_path / "somebodys.py").write_text(
        f"open({str(tmp_path / 'imported')!r}, 'w')\n"
        "from microdit.encoders.pixel import PixelAutoencoder\n"
        "def make(sigma_data: float) -> PixelAutoencoder:\n"
        "    return PixelAutoencoder(sigma_data)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("microdit.build.TRUSTED", {"microdit"})
    monkeypatch.setenv("MICRODIT_TRUST", "")
    yield "somebodys.make"
    sys.modules.pop("somebodys", None)


def test_what_nobody_trusts_is_refused_before_it_is_imported(somebodys, tmp_path):
    with pytest.raises(SettingsError, match=r"not of microdit.* trust=\[somebodys\]"):
        build({"_target_": somebodys, "sigma_data": 0.3}, Autoencoder)
    assert not (tmp_path / "imported").exists()


def test_a_trusted_package_may_also_name_functions_that_say_what_they_make(somebodys):
    trust("somebodys")
    assert build({"_target_": somebodys, "sigma_data": 0.3}, Autoencoder).sigma_data == 0.3
    assert os.environ["MICRODIT_TRUST"] == "somebodys"  # which processes of other ranks read


def test_our_own_functions_are_not_for_settings(monkeypatch):
    monkeypatch.setattr("microdit.encoders.pixel.make", a_pixel_autoencoder, raising=False)
    with pytest.raises(SettingsError, match="does not make"):
        build({"_target_": "microdit.encoders.pixel.make", "sigma_data": 0.3}, Autoencoder)


@pytest.mark.parametrize(
    "target", ["Deferred", "", "..", "not a module.x", "math.pi", "builtins.eval", "os.system", "microdit_x.y", 3, None]
)
def test_what_is_no_name_of_ours_is_refused(target):
    with pytest.raises(SettingsError, match=r"is not of microdit|is the name of a class"):
        build({"_target_": target}, Autoencoder)


@pytest.mark.parametrize("expected", [Autoencoder, TextEncoder, TokenPath])
def test_settings_cannot_run_programs(tmp_path, monkeypatch, expected):
    called = []
    monkeypatch.setattr(os, "system", lambda command: called.append(command))

    class Recorded(subprocess.Popen):
        def __init__(self, args):
            called.append(args)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    for target, argument in (("subprocess.Popen", "args"), ("os.system", "command"), ("subprocess.run", "args")):
        with pytest.raises(SettingsError, match=f"{target} is not of microdit"):
            build({"_target_": target, argument: f"touch {tmp_path / 'made'}"}, expected)
    assert not called
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"_target_": PIXEL, "sigma_data": "x"}, "autoencoder.sigma_data must be a number from .*, got 'x'"),
        ({"_target_": PIXEL, "sigma": 1}, "autoencoder: .*PixelAutoencoder has no setting 'sigma'"),
        ({"_target_": "math.pi"}, "autoencoder: _target_ math.pi is not of microdit"),
        ({}, "autoencoder: these settings need a _target_"),
    ],
)
def test_a_mistake_is_told_with_the_key_that_is_typed(settings, told):
    with pytest.raises(SettingsError, match=f"^{told}"):
        build(settings, Autoencoder, "autoencoder")


def test_a_class_is_located_without_making_one():
    assert locate("microdit.masking.deferred.Deferred", TokenPath) is Deferred
