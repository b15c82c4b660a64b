"""A share that leaves a side empty is refused with one that does not."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microdit.data.sources.captioned import Ignored
from microdit.data.sources.folder import FolderSource
from microdit.data.sources.held_out import PartOfSource, check_both_sides, is_held_out
from microdit.data.sources.table import TableSource
from microdit.kinds import SettingsError


class Named(TableSource):
    """A source of which the names are known."""

    def __init__(self, names: list[str]) -> None:
        super().__init__("t.csv")
        self._rows = [(name, "a caption", None) for name in names]


@given(st.lists(st.text("abc123", min_size=1, max_size=6), min_size=2, max_size=12, unique=True), st.floats(0, 0.99))
def test_what_the_refusal_says_keeps_pictures_on_both_sides(names: list[str], share: float) -> None:
    source = Named(names)
    try:
        check_both_sides(source, share)
    except SettingsError as error:
        said = re.search(r"Type held_out=(\S+), which", str(error))
        assert said
        share = float(said[1])
    assert {is_held_out(name, share) for name in names} == {True, False}


def test_a_single_picture_cannot_be_divided() -> None:
    with pytest.raises(SettingsError, match=r"single picture.*held_out=0"):
        check_both_sides(Named(["a"]), 0.05)


def test_what_lies_beside_the_pictures_is_on_one_side_too(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number}.md").write_text("")
    (tmp_path / "a.jpg").write_text("")
    source = FolderSource(str(tmp_path))
    sides = [PartOfSource(source, 0.5, held).beside() for held in (True, False)]
    assert all(sides)
    assert {item.key for side in sides for item in side} == {item.key for item in source.beside()}
    assert sum(map(len, sides)) == 40
    assert all(isinstance(item, Ignored) for side in sides for item in side)
