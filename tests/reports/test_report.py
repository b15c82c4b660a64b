"""The report of a folder: the same from runs and from the committed results, with figures that show what there is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from microdit.build import SettingsError
from microdit.evaluation.pictures import Making, Pictures, PicturesError, keep
from microdit.files import NoRoomError
from microdit.reports.report import remake, report
from microdit.reports.sample_grid import compose, side_by_side
from microdit.reports.tables import Row

TABLES = ("table.md", "table.csv", "table.tex")
PROMPTS = [f"prompt {i}" for i in range(10)]


def told(folder: Path, *runs: Path) -> str:
    console = Console(record=True, width=200, quiet=False, file=(folder / "console.txt").open("w"))
    report(folder, list(runs), console)
    return console.export_text()


@pytest.fixture
def experiment(tmp_path) -> Path:
    folder = tmp_path / "experiments/masking"
    folder.mkdir(parents=True)
    return folder


def test_tables_and_figures_made_again_from_the_results_alone_are_the_same(experiment, headline):
    told(experiment, headline)
    files = (*TABLES, "figure.png", "curves.png")
    first = {name: (experiment / name).read_bytes() for name in files}
    for name in files:
        (experiment / name).unlink()
    told(experiment)
    assert {name: (experiment / name).read_bytes() for name in files} == first


def test_every_run_that_did_not_finish_is_named_with_its_error(experiment, headline):
    text = told(experiment, headline)
    assert "sweep/deferred-p75-2: failed. OSError: deferred.tar is damaged" in text
    assert "sweep/deferred-p50-1: unfinished." in text


def test_marks_without_an_end_in_a_readme_take_no_time_and_are_left(experiment, headline):
    (experiment / "README.md").write_text("<!-- table -->\n" * 50_000)
    told(experiment, headline)
    assert (experiment / "README.md").read_text() == "<!-- table -->\n" * 50_000


def test_a_readme_that_is_no_utf_8_is_told_before_tables_are_written(experiment, headline):
    (experiment / "README.md").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match=r"README\.md is not UTF-8 .*save it as UTF-8"):
        told(experiment, headline)
    assert not (experiment / "table.md").exists()


def test_a_folder_of_runs_gets_its_report_inside(headline):
    told(headline)
    assert (headline / "results.csv").is_file()
    assert "± " in (headline / "table.md").read_text()


def test_a_folder_of_runs_is_read_anew_when_more_of_them_have_finished(headline, make_run):
    told(headline)
    make_run("naive", "p25")
    told(headline)
    assert "| naive | p25 |" in (headline / "table.md").read_text()


def test_the_table_takes_its_place_in_the_readme(experiment, headline):
    readme = experiment / "README.md"
    readme.write_text("# Masking\n<!-- table -->\nold\n<!-- /table -->\nWhat we found.\n")
    told(experiment, headline)
    table = (experiment / "table.md").read_text()
    assert readme.read_text() == f"# Masking\n<!-- table -->\n{table}<!-- /table -->\nWhat we found.\n"


def test_results_alone_cannot_be_reported_where_there_are_none(experiment, tmp_path):
    with pytest.raises(SettingsError, match="holds no run"):
        report(experiment, [], Console(quiet=True))
    with pytest.raises(SettingsError, match="nowhere is no folder"):
        report(tmp_path / "nowhere", [], Console(quiet=True))
    with pytest.raises(SettingsError, match=r"results\.csv does not exist"):
        remake(experiment)


def test_samples_side_by_side_have_a_column_a_row_of_the_table_also_where_nothing_was_kept(experiment, headline):
    for run in headline.iterdir():
        keep(run / "evaluation/skills.tar", Making(PROMPTS, {"seed": 0}, "", []), iter([torch.zeros(10, 3, 16, 16)]))
    told(experiment, headline)
    full = Image.open(experiment / "samples.png").convert("RGB")
    for run in headline.glob("none-*"):
        (run / "evaluation/skills.json").unlink()
    told(experiment, headline)
    fewer = Image.open(experiment / "samples.png").convert("RGB")
    assert black_columns(full) == 3  # deferred at p50 has no finished run
    assert black_columns(fewer) == 2
    assert full.width == fewer.width


def black_columns(sheet: Image.Image) -> int:
    """How many columns of a sheet hold black pictures: cells of 112 px, 118 apart, after 190 px of prompts."""
    middle = sheet.height // 2
    return sum(sheet.getpixel((x, middle)) == (0, 0, 0) for x in range(190 + 56, sheet.width, 118))


def test_a_report_that_cannot_be_made_leaves_the_one_that_was_there(experiment, headline, make_run):
    told(experiment, headline)
    before = {path.name: path.read_bytes() for path in experiment.iterdir() if path.name != "console.txt"}
    again = make_run("none", "none", seed=3) / "result.json"
    again.write_text(again.read_text().replace('"seed": 3', '"seed": 1'))
    with pytest.raises(SettingsError, match="have the same seed"):
        told(experiment, headline)
    assert {path.name: path.read_bytes() for path in experiment.iterdir() if path.name != "console.txt"} == before


@pytest.mark.parametrize("file", ["result.json", "config.yaml", "metrics.csv", "evaluation/skills.tar"])
def test_a_run_that_links_to_files_elsewhere_is_refused_before_anything_is_written(experiment, make_run, file):
    run = make_run("none", "none")
    (experiment.parent / "outside").write_text("secret: 1")
    (run / file).parent.mkdir(exist_ok=True)
    (run / file).unlink(missing_ok=True)
    (run / file).symlink_to(experiment.parent / "outside")
    with pytest.raises(SettingsError, match=f"{file} is a link to"):
        report(experiment, [run.parent], Console(quiet=True))
    assert not list(experiment.iterdir())


def test_a_damaged_configuration_is_told_by_its_line_and_not_its_text(experiment, make_run):
    make_run("none", "none")
    run = make_run("naive", "p75")
    (run / "config.yaml").write_text("a: 1\nsecret: [hunter2\nb: 2\n")
    text = told(experiment, run.parent)
    assert "config.yaml is damaged (line 3: " in text
    assert "hunter2" not in text + (experiment / "results.csv").read_text()


FILES = ("results.csv", "curves.csv", *TABLES, "README.md", "figure.png", "curves.png", "samples.png")


@pytest.mark.parametrize("full", FILES)
def test_a_disk_that_is_full_leaves_each_file_as_it_was_and_names_it(experiment, headline, monkeypatch, full):
    for run in headline.iterdir():
        keep(run / "evaluation/skills.tar", Making(PROMPTS, {}, "n", []), iter([torch.zeros(10, 3, 8, 8)]))
    (experiment / "README.md").write_text("<!-- table -->\n<!-- /table -->\nWhat we found.\n")
    told(experiment, headline)
    before = {name: (experiment / name).read_bytes() for name in FILES}
    (headline / "none-none-1/result.json").write_text('{"status": "failed", "seed": 1}')

    def opened(path: Path, mode: str, **options):
        return open("/dev/full" if path.name == f".{full}.partial" else path, mode.replace("x", "w"), **options)

    monkeypatch.setattr("microdit.files.open", opened, raising=False)
    with pytest.raises(NoRoomError, match=rf"{full} cannot be written: .*Make room"):
        report(experiment, [headline], Console(quiet=True))
    assert (experiment / full).read_bytes() == before[full]
    assert not list(experiment.glob(".*.partial"))


@pytest.mark.parametrize("file", [name for name in FILES if name != "README.md"])
def test_a_pipe_in_the_place_of_a_file_is_no_reason_to_wait(experiment, headline, file):
    for run in headline.iterdir():
        keep(run / "evaluation/skills.tar", Making(PROMPTS, {}, "n", []), iter([torch.zeros(10, 3, 8, 8)]))
    os.mkfifo(experiment / file)
    with pytest.raises(SettingsError, match=rf"{file} is neither file nor folder"):
        report(experiment, [headline], Console(quiet=True))


def test_samples_of_other_prompts_are_not_put_side_by_side(experiment, headline):
    for run in headline.iterdir():
        making = Making([run.name, "another"], {"seed": 0}, "", [])
        keep(run / "evaluation/skills.tar", making, iter([torch.rand(2, 3, 16, 16)]))
    with pytest.raises(SettingsError, match="other prompts or another sampling"):
        told(experiment, headline)


def test_words_of_a_run_are_text_in_every_table_and_draw_no_formula(experiment, make_run):
    evil = "$\\frac{x|y$ <!-- /table --> [a](http://b) \x1b[2J\u202e\r\n% \\input{x}"
    for masking in (evil, "none"):
        make_run(masking.replace("/", "-"), "p75", settings={"note": evil}).rename(
            experiment.parent / str(len(masking))
        )
    (experiment / "report.yaml").write_text(json.dumps({"title": evil}))
    (experiment / "README.md").write_text("<!-- table -->\n<!-- /table -->\nWhat we found.\n")
    told(experiment, experiment.parent)
    for file in (*TABLES, "results.csv", "README.md"):
        content = (experiment / file).read_text()
        assert "\\x1b" in content
        assert not set("\x1b\u202e\r") & set(content)
    readme = (experiment / "README.md").read_text()
    assert (readme.count("<!-- /table -->"), readme.count("](http"), readme.count("\\frac{x\\|y")) == (1, 0, 2)
    assert "\n% " not in (experiment / "table.tex").read_text()[1:]
    told(experiment)
    assert (experiment / "README.md").read_text() == readme


@pytest.mark.parametrize("number", ["1e308", "1" + "0" * 4_000, "NaN", "Infinity", '"many"', "[1]", "null", "-1e-320"])
def test_numbers_that_nobody_measured_are_none(experiment, make_run, number):
    for seed in (1, 2, 3):
        run = make_run("none", "none", seed)
        result = (run / "result.json").read_text().replace('"steps": 4', f'"steps": {number}')
        (run / "result.json").write_text(result.replace("0.5", number).replace("2000000", number))
        written = (run / "metrics.csv").read_text().replace("0.5", number.strip('"'))
        (run / "metrics.csv").write_text(written.replace("1000", "1e308"))
    told(experiment, run.parent)
    table = (experiment / "table.md").read_text()
    assert "| none |" in table
    assert "nan" not in table


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("results.csv", b"", r"results\.csv is damaged"),
        ("results.csv", b"run,status\n", r"results\.csv has no column error, seed"),
        ("results.csv", b"run,status,error,seed\n", r"results\.csv holds no runs"),
        ("results.csv", b"run,status,error,seed\na\n", r"results\.csv, row 2, has 1 values where the first has 4"),
        ("results.csv", b'run,status,error,seed\n"' + b"a" * 200_000, r"results\.csv is damaged"),
        ("results.csv", b"\xff", r"results\.csv is damaged"),
        ("curves.csv", b"step\n1\n", r"curves\.csv has no column run"),
    ],
)
def test_results_that_are_none_are_named_with_the_command_that_makes_them(experiment, headline, file, content, message):
    told(experiment, headline)
    (experiment / file).write_bytes(content)
    with pytest.raises(SettingsError, match=message + r".*python report\.py"):
        told(experiment)


def test_a_step_of_curves_that_is_no_number_is_left_out(experiment, headline):
    told(experiment, headline)
    curves = (experiment / "curves.csv").read_text()
    (experiment / "curves.csv").write_text(
        curves + "".join(f"{curves.splitlines()[1].replace(',1,', f',{s},', 1)}\n" for s in ("x", "²", "9" * 5_000))
    )
    told(experiment)


def test_large_pictures_and_long_prompts_take_no_more_room_than_the_grid_has(experiment, make_run):
    run = make_run("none", "none")
    making = Making(["p" * 50_000 for _ in range(10)], {}, "n", [])
    keep(run / "evaluation/skills.tar", making, iter([torch.zeros(10, 3, 700, 700)]))
    told(experiment, run)
    with Image.open(experiment / "samples.png") as grid:
        assert (grid.width, grid.height) < (800, 4_400)


def test_the_sheet_of_samples_is_bounded_by_its_rows_and_says_so(tmp_path, monkeypatch, caplog):
    tar, making = tmp_path / "skills.tar", Making(PROMPTS, {}, "n", [])
    keep(tar, making, iter([torch.zeros(10, 3, 8, 8)]))
    rows = [Row((), ("a" * 50_000,), {}, ["run"], "1") for _ in range(450)]
    monkeypatch.setattr("microdit.reports.sample_grid.read_run", lambda run: {"run": "run"})
    monkeypatch.setattr("microdit.reports.sample_grid.kept_pictures", lambda runs: Pictures(tar, making, 10))
    sheet = side_by_side([tmp_path], rows)
    assert sheet is not None
    assert sheet.width < 5_000
    assert sheet.height < 2_000
    assert "shows the first of 450" in caplog.text


def test_pictures_of_one_run_are_not_enlarged_as_small_ones_of_another_are():
    sizes = [(1, 1), (512, 512), (1, 512)]
    sheet = compose(["a", "b", "c"], [np.zeros((8, 3, *size), np.uint8) for size in sizes], PROMPTS[:8])
    assert sheet.width < 1_800
    assert sheet.height < 4_200


def test_a_broken_kept_picture_is_named(experiment, make_run):
    run = make_run("none", "none")
    keep(run / "evaluation/skills.tar", Making(PROMPTS, {}, "n", []), iter([torch.zeros(10, 3, 8, 8)]))
    content = (run / "evaluation/skills.tar").read_bytes()
    (run / "evaluation/skills.tar").write_bytes(content.replace(b"IDAT", b"IDAX", 1))
    with pytest.raises(PicturesError, match=r"skills\.tar is not as it was written.*evaluate again"):
        told(experiment, run)


@pytest.mark.parametrize("part", ["trainer", "logger", "metrics", "seed", "init_from", "model"])
@pytest.mark.parametrize("value", [3, "a", [], [{"a": []}], {"a": {1: 2}}, None])
def test_a_run_whose_settings_are_of_another_kind_is_in_the_report_or_said_to_be_unreadable(
    experiment, make_run, part, value
):
    make_run("none", "none")
    run = make_run("naive", "p75")
    (run / "config.yaml").write_text(json.dumps({"seed": 1, "choices": {"masking": "naive"}, part: value}))
    said = told(experiment, run.parent)
    assert "naive" in said
