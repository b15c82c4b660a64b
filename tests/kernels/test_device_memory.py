"""Memory of a GPU is taken in segments that grow, unless a person says otherwise."""

import os

import pytest

from microdit.kernels.gpu.device_memory import OLD_VARIABLE, VARIABLE, let_segments_grow


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in (VARIABLE, OLD_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_segments_grow():
    let_segments_grow()
    assert os.environ[VARIABLE] == "expandable_segments:True"


@pytest.mark.parametrize("name", [VARIABLE, OLD_VARIABLE])
def test_a_persons_own_setting_stays(monkeypatch, name):
    monkeypatch.setenv(name, "max_split_size_mb:128")
    let_segments_grow()
    assert [os.environ.get(each) for each in (VARIABLE, OLD_VARIABLE)].count("max_split_size_mb:128") == 1
    assert "expandable_segments:True" not in os.environ.values()
