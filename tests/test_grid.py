"""Pictures and prompts on one sheet."""

import numpy as np
import pytest
import torch

from microdit import grid
from microdit.grid import CELL_PX, MARGIN_PX, font_for, not_shown, prompt_grid, sheet_of, shown_as

COLOURS = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])


def plain_pictures(n: int, height: int = 32, width: int = 32) -> torch.Tensor:
    return COLOURS[:n, :, None, None].expand(n, 3, height, width)


def test_every_picture_is_at_its_place_row_by_row():
    sheet = np.asarray(prompt_grid(plain_pictures(5), ["x"] * 5, columns=3))
    side = 160  # 32 px enlarged five times, the first whole factor that reaches 144
    centres = [(MARGIN_PX + side // 2, MARGIN_PX + side // 2 + column * (side + MARGIN_PX)) for column in range(3)]
    for (row, column), colour in zip(centres, COLOURS, strict=False):
        assert sheet[row, column].tolist() == (255 * colour).int().tolist()
    second = centres[0][0] + side + MARGIN_PX + 16  # below the first row's picture and its one line of text
    assert sheet[second, centres[0][1]].tolist() == [255, 255, 0]
    assert sheet[second, centres[1][1]].tolist() == [0, 255, 255]
    assert sheet[second, centres[2][1]].tolist() == [255, 255, 255]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (32, 64), (200, 150)])
def test_pictures_are_enlarged_by_whole_factors_to_at_least_the_cell(height, width):
    picture = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    sheet = np.asarray(prompt_grid(picture, [""]))
    factor = max(1, -(-CELL_PX // min(height, width)))
    shown = sheet[MARGIN_PX : MARGIN_PX + height * factor, MARGIN_PX : MARGIN_PX + width * factor]
    expected = (picture[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(shown[::factor, ::factor], expected)
    assert np.array_equal(shown[factor - 1 :: factor, factor - 1 :: factor], expected)


def test_prompts_are_written_below_and_long_ones_make_room():
    short, long = (prompt_grid(plain_pictures(1), [prompt]) for prompt in ("a", "a red circle and " * 8))
    below = np.asarray(short)[MARGIN_PX + 160 :]
    assert (below < 128).any()
    assert long.height > short.height
    assert long.width == short.width


def test_values_outside_zero_to_one_are_cut():
    sheet = np.asarray(prompt_grid(torch.full((1, 3, 8, 8), -3.0), [""]))
    assert sheet[80, 80].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("n", "prompts"), [(2, ["one"]), (0, [])])
def test_as_many_prompts_as_pictures_and_at_least_one(n, prompts):
    with pytest.raises(ValueError, match=f"{n} and {len(prompts)}"):
        prompt_grid(plain_pictures(n), prompts)


@pytest.mark.parametrize("prompts", [["a"], ["a", "a red circle and " * 40, ""], ["wörd " * 99] * 7])
def test_the_size_of_a_sheet_is_known_before_there_are_pictures(prompts):
    sheet = prompt_grid(torch.zeros(len(prompts), 3, 24, 32), prompts)
    assert sheet.size == sheet_of(prompts, 24, 32).size


@pytest.mark.parametrize("prompt", ["ein grünes Boot", "красный круг", "κόκκινος κύκλος", "a → b"])
def test_letters_of_other_scripts_are_shown(prompt):
    assert not_shown([prompt]) == ""
    assert shown_as(prompt) == prompt
    marks = {bytes(font_for(prompt)[0].getmask(letter)) for letter in set(prompt) if not letter.isspace()}
    assert len(marks) == len({letter for letter in prompt if not letter.isspace()})  # no two are the same empty box


def test_letters_that_no_font_here_has_are_escapes_and_told(monkeypatch):
    monkeypatch.setattr(grid, "letters_of", lambda path: frozenset("abc"))
    font_for.cache_clear()
    assert not_shown(["a猫", "b"]) == "猫"
    assert shown_as("a猫") == "a\\u732b"
    font_for.cache_clear()


def test_wide_letters_make_shorter_lines():
    narrow, wide = (sheet_of([letter * 60], 32, 32).texts[0] for letter in "a漢")
    assert len(wide) > len(narrow)
