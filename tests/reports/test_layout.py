"""A report.yaml may come from elsewhere: whatever it holds is shown, or refused in a sentence that names the file."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from microdit.build import SettingsError
from microdit.files import DamagedFileError
from microdit.reports.figures import quality_against_cost
from microdit.reports.layout import read_layout
from microdit.reports.results import Rows, collect
from microdit.reports.tables import as_csv, differences, latex, markdown, summarise

RUN = {"run": "a/b", "status": "finished", "error": "", "seed": "1", "choice/masking": "none", "total_flops": "1"}


def test_more_rows_than_a_table_has_room_for_are_refused(tmp_path):
    given = {"rows": ["choice/masking"], "expected": [f"row {i}" for i in range(20_000)]}
    (tmp_path / "report.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(SettingsError, match=r"room for 1,000 rows, and these are 20,001"):
        summarise([RUN], read_layout(tmp_path, [RUN]))


def test_the_foot_of_a_figure_names_some_of_many_rows_that_are_missing(tmp_path):
    given = {"rows": ["choice/masking"], "figure": ["seed"], "expected": [f"row {i}" for i in range(900)]}
    (tmp_path / "report.yaml").write_text(yaml.safe_dump(given))
    layout = read_layout(tmp_path, [RUN])
    figure = quality_against_cost(summarise([RUN], layout), layout)
    assert figure is not None
    assert "and 850 more: missing" in " ".join(figure.get_supxlabel().split())


def test_a_column_that_is_not_there_is_told_with_some_that_are(tmp_path):
    (tmp_path / "report.yaml").write_text(yaml.safe_dump({"columns": ["a" * 1_000]}))
    with pytest.raises(SettingsError, match=r"and 4956 more") as caught:
        read_layout(tmp_path, [RUN | {f"number_{i}": "" for i in range(5_000)}])
    assert len(str(caught.value)) < 2_000


LOSS = {"column": "validation/loss", "title": "loss", "format": ".3f", "scale": 2, "spread": True}
WHOLE = {
    "title": "A table",
    "rows": [{"column": "choice/masking", "title": ["a", "b"], "labels": {"none": ["c", "d"]}}, "choice/mask_ratio"],
    "columns": [LOSS, "total_flops"],
    "figure": [LOSS],
    "cost": {"column": "total_flops"},
    "expected": [["none", "none"], ["naive", "p75"]],
    "expected_runs": 2,
    "reference": ["none", "none"],
}
OTHERS = [
    None,
    True,
    -1,
    10**400,
    1e300,
    float("nan"),
    "",
    "$x_",
    "\x1b[2J|\n<b>",
    "x" * 10_000,
    [],
    [[]],
    {},
    {"a": {}},
]


def places(content: Any, above: tuple = ()) -> Iterator[tuple]:
    """The way to every value in nested mappings and lists."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for name, inner in inside:
        yield (*above, name)
        yield from places(inner, (*above, name))


def replaced(place: tuple, value: Any) -> dict:
    """WHOLE with another value in one place."""
    content: Any = copy.deepcopy(WHOLE)
    inside = content
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = value
    return content


@pytest.fixture
def runs(make_run, tmp_path) -> Rows:
    for seed in (1, 2):
        make_run("none", "none", seed)
        make_run("naive", "p75", seed)
    return collect(sorted((tmp_path / "sweep").iterdir()))


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(place=st.sampled_from([*places(WHOLE)]), value=st.sampled_from(OTHERS))
def test_whatever_stands_in_a_layout_is_shown_or_refused_with_its_name(runs, tmp_path, place, value):
    (tmp_path / "report.yaml").write_text(yaml.safe_dump(replaced(place, value)))
    told = str(tmp_path / "report.yaml")
    try:
        layout = read_layout(tmp_path, runs)
    except (SettingsError, DamagedFileError) as error:
        layout, told = None, str(error)
    assert str(tmp_path / "report.yaml") in told
    if layout is None:
        return
    rows = summarise(runs, layout)
    for shown, of in ((rows, layout), differences(runs, layout)):
        made = markdown(shown, of) + latex(shown, of) + as_csv(shown, of)
        assert "\x1b" not in made
        assert "<b>" not in markdown(shown, of)
        assert len(made) < 20_000
    figure = quality_against_cost(rows, layout)
    assert figure is None or max(figure.get_size_inches()) < 120


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("rows",), 3, "rows must be a list .*, got 3"),
        (("columns", 0, "format"), 7, r"columns\.0\.format must be a text, got 7"),
        (("figure",), [LOSS] * 21, "figure must be a list .*, 0 to 20 of them, got"),
        (("columns", 0, "scale"), 1e300, r"columns\.0\.scale must be a number from -1e\+36 to 1e\+36, got 1e\+300"),
        (("columns", 0, "scale"), 10**400, r"columns\.0\.scale must be a number from .*, got 1000"),
        (("rows",), [], "rows must be a list .*, 1 to 100 of them"),
    ],
)
def test_the_key_and_the_file_are_named(runs, tmp_path, place, value, told):
    (tmp_path / "report.yaml").write_text(yaml.safe_dump(replaced(place, value)))
    with pytest.raises(SettingsError, match=rf"report\.yaml.*{told}"):
        read_layout(tmp_path, runs)


def test_a_layout_whose_aliases_multiply_is_refused(runs, tmp_path):
    aliases = ", ".join(["*a"] * 1_000)
    (tmp_path / "report.yaml").write_text(f"title: &a {'x' * 200_000}\nreference: [{aliases}]")
    with pytest.raises(DamagedFileError, match=r"report\.yaml is damaged .*docs/evaluation\.md"):
        read_layout(tmp_path, runs)
