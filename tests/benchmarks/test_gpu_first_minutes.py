"""The script for the first minutes on a GPU runs where there is none, part by part, whatever fails."""

import json
import sys

import gpu_first_minutes
import pytest


@pytest.fixture
def run(monkeypatch, tmp_path):
    def measured() -> dict:
        given = ["--device", "cpu", "--network", "small", "--batch", "2", "--repeats", "1", "--out", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["gpu_first_minutes.py", *given])
        gpu_first_minutes.main()
        return json.loads((tmp_path / "first_minutes.json").read_text())

    return measured


def test_every_part_leaves_its_numbers(run, tmp_path, capsys):
    record = run()
    assert not record["failed"]
    assert [step["batch"] for step in record["steps"]] == [2, 1, 1, 1]
    assert all(step["mfu"] > 0 for step in record["steps"])
    hours = record["stages"]["gpu_hours"]
    assert list(hours) == ["256 px, 75% masked", "256 px, 0% masked", "512 px, 75% masked", "512 px, 0% masked"]
    assert record["stages"]["dollars"]["2.0"] == pytest.approx(2 * sum(hours.values()))
    assert len(record["pictures_per_second"]) == 3
    assert "self" in (tmp_path / "profile.txt").read_text().lower()
    assert "images/s" in (tmp_path / "table.txt").read_text()
    assert "all four stages" in capsys.readouterr().out


def test_a_part_that_fails_leaves_the_others(run, monkeypatch):
    def fails(minutes):
        raise RuntimeError("out of memory")

    parts = [("first", 5, fails), ("product", 20, gpu_first_minutes.measure_product)]
    monkeypatch.setattr(gpu_first_minutes, "parts", lambda on_gpu: parts)
    record = run()
    assert record["failed"] == {"first": "RuntimeError: out of memory"}
    assert record["product_flops_per_second"] > 0
