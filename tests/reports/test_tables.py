"""Tables: means and spreads over seeds, nothing dropped, rows that cannot be told apart refused."""

import statistics

import pytest
import yaml

from microdit.build import SettingsError
from microdit.evaluation.shapes.features import VERSION
from microdit.reports.layout import COSTS, QUALITIES, Column, Layout, RowKey, read_layout
from microdit.reports.results import collect
from microdit.reports.tables import as_csv, as_markdown, differences, escaped, latex, markdown, published, summarise
from microdit.runs.folder import find_runs

MASKING, RATIO = "choice/masking", "choice/mask_ratio"


def layout(results, folder, **report) -> Layout:
    (folder / "report.yaml").write_text(yaml.safe_dump(report, sort_keys=False))
    return read_layout(folder, results)


@pytest.fixture
def results(headline):
    return collect(find_runs([headline]))


def table(rows, of: Layout) -> dict[str, list[str]]:
    """The Markdown table's cells by the text of the row keys."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in markdown(rows, of).splitlines() if "|" in line
    ]
    return {" ".join(line[: len(of.rows)]): line[len(of.rows) :] for line in lines[2:]}


def test_rows_are_told_apart_by_the_fewest_choices(results, tmp_path):
    inferred = read_layout(tmp_path, results)
    assert [key.column for key in inferred.rows] == [MASKING, RATIO]


def test_experiments_tell_rows_apart_where_choices_do_not(results, tmp_path):
    for row in results:
        row["choice/experiment"] = f"{row[MASKING]}_{row[RATIO]}"
    assert [key.column for key in read_layout(tmp_path, results).rows] == [MASKING, RATIO]
    results[0]["choice/experiment"] = "weight_decay_01"  # a value in a file, no choice of a group
    results[1]["choice/experiment"] = "weight_decay_001"
    results[0][MASKING], results[0][RATIO] = results[1][MASKING], results[1][RATIO]
    assert [key.column for key in read_layout(tmp_path, results).rows] == ["choice/experiment"]


def test_a_cell_is_the_mean_and_the_sample_deviation_over_seeds(results, tmp_path):
    of = read_layout(tmp_path, results)
    cells = table(summarise(results, of), of)
    mean, spread = statistics.fmean([0.41, 0.42]), statistics.stdev([0.41, 0.42])
    assert cells["none none"][0] == f"{mean:.4f} ± {spread:.4f}"
    assert cells["deferred p75"][0] == "0.5000"  # one run has no spread


def test_failed_killed_and_missing_runs_are_shown(results, tmp_path):
    expected = [["none", "none"], ["naive", "p50"]]
    rows = [{"column": MASKING}, {"column": RATIO}]
    of = layout(results, tmp_path, rows=rows, columns=["validation/loss"], expected=expected, expected_runs=3)
    cells = table(summarise(results, of), of)
    assert cells["none none"][-1] == "2 (1 missing)"
    assert cells["naive p50"] == ["–", "missing"]
    assert cells["deferred p75"] == ["0.5", "1 (1 failed, 1 missing)"]
    assert cells["deferred p50"] == ["–", "0 (1 unfinished, 2 missing)"]


def test_a_number_that_not_all_runs_have_says_how_many(results, tmp_path):
    next(row for row in results if row["run"] == "sweep/naive-p75-2")["validation/loss"] = ""
    of = read_layout(tmp_path, results)
    assert table(summarise(results, of), of)["naive p75"][0] == "0.6200 (n=1)"


def test_two_finished_runs_of_one_seed_in_a_row_are_refused(results, tmp_path):
    of = layout(results, tmp_path, rows=[MASKING], columns=["validation/loss"])
    next(row for row in results if row["run"] == "sweep/naive-p75-2")["seed"] = "1"
    with pytest.raises(SettingsError, match=r"sweep/naive-p75-1 and sweep/naive-p75-2 have the same seed \(1\)"):
        summarise(results, of)


@pytest.fixture
def swept(make_run, tmp_path):
    """A sweep of a plain value: every value has seeds of its own, so that seeds cannot tell the runs apart."""
    for seed, factor in enumerate((1.0e-5, 1.0e-5, 0.1, 2.0, 10.0), start=1):
        make_run("deferred", "p75", seed, loss=0.1 * seed, settings={"variation": {"patch_mixer_depth": factor}})
    return collect(find_runs([tmp_path / "sweep"]))


def test_runs_that_differ_in_a_plain_value_have_rows_of_their_own_by_size(swept, tmp_path):
    of = read_layout(tmp_path, swept)
    assert [key.titles for key in of.rows] == [("variation.patch_mixer_depth",)]
    cells = table(summarise(swept, of), of)
    assert {key: row[0] for key, row in cells.items()} == {
        "1e-05": "0.1500 ± 0.0707",
        "0.1": "0.3000",
        "2": "0.4000",
        "10": "0.5000",
    }
    assert list(cells) == ["1e-05", "0.1", "2", "10"]


def test_runs_with_other_settings_are_never_averaged(swept, tmp_path):
    of = layout(swept, tmp_path, rows=[MASKING], columns=["validation/loss"])
    told = r"deferred-p75-2 and .*deferred-p75-3 differ in variation\.patch_mixer_depth \(1e-05 and 0\.1\)"
    with pytest.raises(SettingsError, match=told):
        summarise(swept, of)
    summarise(swept[:2], of)


def test_a_setting_that_choices_explain_makes_no_row_key(make_run, tmp_path):
    for ratio, share in (("p25", 0.25), ("p75", 0.75)):
        make_run("deferred", ratio, settings={"mask_ratio": {"share": share}})
    results = collect(find_runs([tmp_path / "sweep"]))
    assert [key.column for key in read_layout(tmp_path, results).rows] == [RATIO]


def test_labels_name_and_order_the_rows(results, tmp_path):
    labels = {"none": "no masking", "naive": "naive masking"}
    rows = [{"column": MASKING, "title": "method", "labels": labels}, RATIO]
    of = layout(results, tmp_path, rows=rows, columns=["validation/loss"])
    assert [row.labels for row in summarise(results, of)] == [
        ("no masking", "none"),
        ("naive masking", "p75"),
        ("deferred", "p50"),
        ("deferred", "p75"),
    ]


def test_one_choice_may_be_written_as_several_columns(results, tmp_path):
    key = {"column": MASKING, "title": ["method", "sees"], "labels": {"none": ["no masking", "all patches"]}}
    of = layout(results, tmp_path, rows=[key, RATIO], columns=["validation/loss"])
    rows = summarise(results, of)
    assert rows[0].labels == ("no masking", "all patches", "none")
    assert rows[-1].labels == ("naive", "–", "p75")
    assert markdown(rows, of).splitlines()[2] == "| method | sees | mask ratio | validation/loss | runs |"


def test_the_csv_table_holds_numbers(results, tmp_path):
    of = read_layout(tmp_path, results)
    header, *lines = as_csv(summarise(results, of), of).splitlines()
    assert header.startswith("masking,mask ratio,validation loss,validation loss spread,validation loss count,")
    assert lines[-1].startswith("none,none,0.415,0.007071068,2,")


def test_the_latex_table_is_balanced_and_escaped(results, tmp_path):
    of = layout(
        results, tmp_path, rows=[MASKING, RATIO], columns=[{"column": "validation/loss", "title": "loss_% & more"}]
    )
    text = latex(summarise(results, of), of)
    assert r"loss\_\% \& more" in text
    assert r"0.415 $\pm$ 0.00707" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {line.count("&") - line.count(r"\&") for line in body} == {3}
    assert escaped('<50 | "x" {a_b}') == r"\textless{}50 \textbar{} ''x'' (a\_b)"


def test_differences_are_seed_by_seed(results, tmp_path):
    of = layout(results, tmp_path, rows=[MASKING, RATIO], reference=["naive", "p75"])
    rows, shown = differences(results, of)
    assert shown.title == "Minus naive, p75, seed by seed"
    cells = table(rows, shown)
    # 0.41 - 0.62 and 0.42 - 0.64, though the rows' own spreads are 0.007 and 0.014
    assert cells["none none"] == ["-0.2150 ± 0.0071", "2"]
    assert cells["deferred p75"] == ["-0.1200", "1"]  # its second seed failed
    assert cells["deferred p50"] == ["–", "0"]
    assert "naive p75" not in cells


def test_nothing_is_compared_with_a_row_that_has_not_finished(results, tmp_path):
    of = layout(results, tmp_path, rows=[MASKING, RATIO], reference=["deferred", "p50"])
    assert differences(results, of)[0] == []
    assert differences(results, layout(results, tmp_path))[0] == []


def test_published_rows_stand_below_ours_with_their_sources(results, tmp_path):
    column = {"column": "total_flops", "title": "MFLOP", "format": ".1f", "scale": 1e-6}
    theirs = {"row": ["DiT_1", "-"], "values": {"total_flops": 5e6, "clip_score": 26.5}, "source": "<them>, 2023"}
    given = {"rows": [MASKING, RATIO], "columns": [column, "clip_score"], "published": [theirs]}
    of = layout(results, tmp_path, **given)
    rows = [*summarise(results, of), *published(of)]
    assert table(rows, of)["DiT_1 -"] == ["5.0", "26.5", "published"]
    assert table(rows, of)["none none"][1] == "–"  # no run of ours has it
    text = markdown(rows, of)
    assert text.endswith("Published rows are as their authors give them:\n- DiT_1, -: &lt;them>, 2023\n")
    assert "DiT_1" not in markdown(summarise(results, of), of)
    assert as_csv(rows, of).splitlines()[-1] == "DiT_1,'-,5,,0,26.5,,0,published"
    assert "% DiT_1, -: <them>, 2023" in latex(rows, of)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"published": [{"row": ["a"], "values": {"seed": 1.0}, "source": "b"}]}, r"needs 2 texts, .*\['masking', "),
        ({"published": [{"row": ["a", "b"], "values": {"los": 1.0}, "source": "b"}]}, "has 'los', which is no column"),
        ({"published": [{"row": ["a", "b"], "values": {"seed": 1.0}}]}, "also needs: source"),
        ({"published": [{"row": ["a", "b"], "values": {"seed": "x"}, "source": "b"}]}, "seed must be a number"),
        ({"colums": []}, "did you mean 'columns'"),
        ({"columns": [{"column": "validation/loss", "formt": ".3f"}]}, "did you mean 'format'"),
        ({"columns": ["validation/los"]}, "no run has 'validation/los'"),
        ({"columns": [{"title": "loss"}]}, "does not name its column"),
        ({"columns": [{"column": "validation/loss", "format": ".3q"}]}, r"no format '\.3q'"),
        ({"columns": [{"column": "validation/loss", "format": "2000000000f"}]}, r"no format '2000000000f'"),
        ({"columns": [{"column": "validation/loss", "format": ".2000000000f"}]}, r"no format '\.2000000000f'"),
        ({"rows": [{"column": MASKING, "title": ["a", "b"], "labels": {"none": "c"}}]}, "1 texts, .* 2 titles"),
        ({"rows": [MASKING, RATIO], "expected": ["none"]}, "needs 2 values"),
        ({"rows": [MASKING, RATIO], "reference": "none"}, "the reference row .* needs 2 values"),
        ({"rows": [MASKING], "expected": ["none"], "reference": "naive"}, "none of the expected rows"),
        ({"columns": ["seed"] * 201}, "columns must be a list .*, 0 to 200 of them"),
        ({"rows": [MASKING] * 101}, "rows must be a list .*, 1 to 100 of them"),
        ({"rows": [{"column": MASKING, "labels": {str(i): "a" for i in range(1001)}}]}, "0 to 1,000 of them"),
    ],
)
def test_a_layout_that_cannot_be_meant_is_refused(results, tmp_path, report, message):
    with pytest.raises(SettingsError, match=message):
        layout(results, tmp_path, **report)


def test_the_features_in_use_are_among_what_tables_show():
    assert f"frechet_{VERSION}/distance" in {column.column for column in (*QUALITIES, *COSTS)}


def test_scales_and_formats_apply_to_mean_and_spread(results):
    column = Column("total_flops", "MFLOP", ".1f", scale=1e-6)
    of = Layout("title", [RowKey(MASKING, ("masking",))], [column], [], column)
    assert table(summarise(results, of), of)["none"] == ["2.0 ± 0.0", "2"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b", "a_b"),
        ("_a_ __b__", r"\_a\_ \_\_b\_\_"),
        ("*a* ~b~ `c` $d$", r"\*a\* \~b\~ \`c\` \$d\$"),
        ("http://a www.b", r"http\://a www\.b"),
        ("a|b", r"a\|b"),
        ("-0.5 ± 0.1", "-0.5 ± 0.1"),
    ],
)
def test_markup_in_a_cell_is_text(text, shown):
    assert as_markdown(text) == shown
