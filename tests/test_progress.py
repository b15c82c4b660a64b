"""What is shown of files is text: it moves no cursor, changes no colour and turns no order of reading."""

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress, TextColumn
from rich.table import Table
from rich.text import Text

from microdit import progress
from microdit.progress import Pace, VisibleConsole, duration, on_one_line, visible

ESCAPES = "\x1b[31mred\x1b]8;;http://a\x1b\\ \r \x9b \x08 \u202e \u2066 \ud800"


@given(st.text())
def test_a_visible_text_has_no_control_characters_and_stays_as_it_is(text):
    shown = visible(text)
    assert {c for c in shown if unicodedata.category(c) in ("Cc", "Cs")} <= {"\n", "\t"}
    assert not {c for c in shown if unicodedata.bidirectional(c) in ("RLO", "LRO", "RLE", "LRE", "RLI", "LRI", "FSI")}
    assert visible(shown) == shown
    if text.isprintable():
        assert shown == text


def test_words_in_any_language_stay_as_they_are():
    for words in ("žluťoučký kůň", "مرحبا", "می‌خواهم", "日本語", "👩‍🚀", "a\nb\tc"):
        assert visible(words) == words


def test_a_text_on_one_line_has_one_at_any_depth():
    assert on_one_line({"a\n": ["b\nc", {"d": 1}]}) == {"a ": ["b c", {"d": 1}]}


def test_nothing_a_file_says_reaches_the_terminal_raw():
    for force_terminal in (True, False):
        file = io.StringIO()
        console = VisibleConsole(file=file, force_terminal=force_terminal, color_system=None, markup=False, width=200)
        table = Table(title=ESCAPES)
        table.add_column(ESCAPES)
        table.add_row(ESCAPES)
        console.print(ESCAPES, Text(ESCAPES), table, highlight=False)
        assert "\\x1b[31mred" in file.getvalue()
        assert not set(file.getvalue()) & {*ESCAPES.replace(" ", "")} - {*"[31mred]8;http:/a\\"}


def test_a_bar_shows_the_names_of_files_as_text():
    file = io.StringIO()
    console = VisibleConsole(file=file, force_terminal=True, width=200)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as bar:
        bar.add_task("\x1b]0;title\x07")
    assert "\\x1b]0;" in file.getvalue()
    assert "\x1b]0;" not in file.getvalue()


def test_long_work_is_told_how_long_it_will_take_by_its_first_part_and_short_work_is_not(monkeypatch):
    now = iter([100.0, 102.0, 103.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    told: list[str] = []
    pace = Pace(told.append, "judging", 2000)
    pace.step()
    pace.step()
    assert told == ["judging: about 66.7 min, by the first, 2 s"]
    now = iter([0.0, 1.0, 0.0, 8.0, 0.0, 5.0])
    Pace(told.append, "nothing", 3).step()
    Pace(told.append, "four at once", 400).step(4)
    Pace(told.append, "of unknown length", None).step()
    assert told[1:] == ["four at once: about 13.3 min, by the first, 2 s"]


@pytest.mark.parametrize(("seconds", "words"), [(0.5, "0.5 s"), (100, "100 s"), (130, "2.17 min"), (9000, "2.5 h")])
def test_durations_are_in_the_unit_that_suits_them(seconds, words):
    assert duration(seconds) == words
