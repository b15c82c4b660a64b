"""A device is checked before work begins."""

import logging
import sys

import numpy as np
import pytest
import torch

from microdit.build import SettingsError
from microdit.commands.messages import check_device, run_told


@pytest.mark.parametrize("absent", ["cuda:99", "gpuu"])
def test_a_device_that_is_not_there_is_refused_with_the_one_that_is(absent):
    with pytest.raises(SettingsError, match=f"device={absent} cannot be used here .*device=cpu"):
        check_device(absent)


def test_the_processor_can_always_be_used():
    check_device("cpu")


def stopped() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_tells_how_to_go_on_with_training_and_with_preparing(capsys):
    with pytest.raises(SystemExit) as ended:
        run_told(stopped)
    assert ended.value.code == 130
    message = " ".join(capsys.readouterr().err.split())
    assert "train.py goes on from the newest checkpoint with resume=RUN, prepare.py with the same command" in message


def mistaken() -> None:
    raise SettingsError("choose [one] of two")


def told(main, capsys) -> str:
    with pytest.raises(SystemExit) as ended:
        run_told(main)
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_mistake_is_one_sentence_that_names_the_way_to_its_traceback(capsys, monkeypatch):
    monkeypatch.delenv("MICRODIT_DEBUG", raising=False)
    said = told(mistaken, capsys)
    assert said.splitlines()[0] == "error: choose [one] of two"
    assert "MICRODIT_DEBUG=1" in said
    assert "Traceback" not in said


def test_numbers_that_are_none_are_a_mistake_and_other_arithmetic_is_not(capsys):
    def overflown() -> None:
        raise FloatingPointError("embedded:shapes gave non-finite images")

    def divided() -> None:
        print(1 // 0)

    assert told(overflown, capsys).startswith("error: embedded:shapes gave non-finite images")
    with pytest.raises(ZeroDivisionError):
        run_told(divided)


def test_with_microdit_debug_the_traceback_of_any_mistake_is_shown(capsys, monkeypatch):
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("MICRODIT_DEBUG", "1")
    for main in (mistaken, full):
        said = told(main, capsys)
        assert "Traceback (most recent call last)" in said
        assert f"in {main.__name__}" in said
        assert "error: " in said


def test_an_error_that_nobody_foresaw_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_told(lambda: 1 / 0)


def test_ctrl_c_says_how_to_go_on_and_ends_with_130(capsys):
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_told(interrupted)
    assert ended.value.code == 130
    assert "resume=RUN" in capsys.readouterr().err


ESCAPES = "\x1b[2J\u202e\rerror: none\nerror: run `other` instead"


def test_an_error_shows_control_characters_and_cannot_pass_for_another(capsys):
    def named() -> None:
        raise SettingsError(ESCAPES)

    said = told(named, capsys)
    assert said.startswith("error: \\x1b[2J\\u202e")
    assert "\r" not in said
    assert [line for line in said.splitlines() if line.startswith("error:")] == said.splitlines()[:1]


def test_what_nobody_foresaw_and_what_is_logged_shows_control_characters(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())

    def unforeseen() -> None:
        logging.getLogger("a").warning("%s is logged", ESCAPES)
        raise KeyError(ESCAPES)

    handler = logging.StreamHandler()
    logging.getLogger("a").addHandler(handler)
    with pytest.raises(KeyError) as raised:
        run_told(unforeseen)
    logging.getLogger("a").removeHandler(handler)
    sys.excepthook(raised.type, raised.value, raised.tb)
    said = capsys.readouterr().err
    assert "\\x1b[2J" in said
    assert "KeyError" in said
    assert not {"\x1b", "\u202e", "\r"} & {*said}


@pytest.mark.parametrize(
    "allocate", [lambda: bytearray(1 << 62), lambda: torch.empty(1 << 60), lambda: np.empty(1 << 60, np.uint8)]
)
def test_memory_that_ends_is_told_in_a_sentence(allocate, capsys):
    with pytest.raises(SystemExit):
        run_told(allocate)
    told = capsys.readouterr().err
    assert "memory ended (" in told
    assert "do less at once" in told
    assert "Traceback" not in told
