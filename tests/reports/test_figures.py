"""Figures: the numbers of the table are drawn, and what is not drawn is said."""

import io
from types import SimpleNamespace

import matplotlib as mpl
import pytest

from microdit.reports import figures
from microdit.reports.figures import listed, loss_curves, quality_against_cost, save_figure
from microdit.reports.layout import read_layout
from microdit.reports.results import collect, curves
from microdit.reports.tables import summarise
from microdit.runs.folder import find_runs


@pytest.fixture
def read(headline, tmp_path):
    runs = find_runs([headline])
    results = collect(runs)
    layout = read_layout(tmp_path, results)
    return curves(runs), summarise(results, layout), layout


def test_quality_is_drawn_against_cost_with_its_spread(read):
    _, rows, layout = read
    (axis,) = quality_against_cost(rows, layout).axes
    drawn = {container.get_label(): container for container in axis.containers}
    assert drawn.keys() == {"none, none", "naive, p75", "deferred, p75"}
    line, _, (bars,) = drawn["none, none"].lines
    assert line.get_xydata().tolist() == [[pytest.approx(2e-6), pytest.approx(0.415)]]
    low, high = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 0.00707107, rel=1e-4)
    assert not axis.texts


def test_rows_of_one_method_are_one_line_whose_points_are_named(make_run, tmp_path):
    for ratio in ("p50", "p75"):
        make_run("naive", ratio)
    make_run("deferred", "p75")
    results = collect(find_runs([tmp_path]))
    layout = read_layout(tmp_path, results)
    (axis,) = quality_against_cost(summarise(results, layout), layout).axes
    assert {container.get_label() for container in axis.containers} == {"naive", "deferred, p75"}
    assert {text.get_text() for text in axis.texts} == {"p50", "p75"}


def test_a_figure_is_the_same_whatever_matplotlib_was_told(read):
    points, rows, layout = read

    def drawn() -> list[bytes]:
        files = []
        for figure in (quality_against_cost(rows, layout), loss_curves(points, rows, layout)):
            save_figure(figure, file := io.BytesIO())
            files.append(file.getvalue())
        return files

    usual = drawn()
    with mpl.rc_context({"text.usetex": True, "text.latex.preamble": r"\input{/etc/hostname}", "savefig.dpi": 10}):
        assert drawn() == usual


def test_a_figure_shows_as_many_rows_as_it_has_room_for_and_says_so(read, monkeypatch):
    points, rows, layout = read
    monkeypatch.setattr(figures, "MOST_DRAWN", 2)
    for figure, shown in ((quality_against_cost(rows, layout), 2), (loss_curves(points, rows, layout), 1)):
        assert f"the first {shown} of 3 rows" in figure.get_supxlabel()
        assert "deferred, p50: 0 (1 unfinished)" in figure.get_supxlabel()
        for axis in figure.axes:
            named = [name for name in axis.get_legend_handles_labels()[1] if not name.startswith("_")]
            assert len(named) == shown


def test_what_a_figure_does_not_show_is_at_its_foot(read):
    points, rows, layout = read
    for figure in (quality_against_cost(rows, layout), loss_curves(points, rows, layout)):
        assert "deferred, p50: 0 (1 unfinished)" in figure.get_supxlabel()
    assert "deferred, p75: 1 (1 failed)" in quality_against_cost(rows, layout).get_supxlabel()


def test_curves_are_means_over_the_steps_all_seeds_have_against_steps_and_flops(read):
    points, rows, layout = read
    by_steps, by_flops = loss_curves(points, rows, layout).axes
    curve = next(line for line in by_steps.lines if line.get_label() == "naive, p75")
    assert curve.get_xdata().tolist() == [2, 4]
    assert curve.get_ydata().tolist() == pytest.approx([0.63 * 3, 0.63])
    again = next(line for line in by_flops.lines if line.get_label() == "naive, p75")
    assert again.get_xdata().tolist() == pytest.approx([2e-9, 4e-9])


def test_nothing_to_draw_is_no_figure(make_run, tmp_path):
    make_run("naive", "p75", status="failed")
    results = collect(find_runs([tmp_path]))
    layout = read_layout(tmp_path, results)
    rows = summarise(results, layout)
    assert quality_against_cost(rows, layout) is None
    assert loss_curves([], rows, layout) is None


def test_rows_that_ended_alike_share_a_line_and_none_is_left_out():
    rows = [SimpleNamespace(labels=("naive", ratio), ended="missing") for ratio in ("25 %", "50 %")]
    rows.append(SimpleNamespace(labels=("deferred", "25 %"), ended="0 (1 failed)"))
    told = listed("not drawn: ", rows, panels=2)
    assert told == "\nnot drawn: naive, 25 %; naive, 50 %: missing\nnot drawn: deferred, 25 %: 0 (1 failed)"
