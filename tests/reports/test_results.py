"""From run folders to rows: every run is there, however it ended."""

import csv
import json

import pytest

from microdit.build import SettingsError
from microdit.reports import results
from microdit.reports.results import FIRST_COLUMNS, collect, curves, number, read_csv, read_run, write_csv
from microdit.runs.folder import find_runs


def test_every_run_has_a_row_whatever_became_of_it(headline):
    rows = {row["run"]: row for row in collect(find_runs([headline]))}
    assert len(rows) == 7
    assert rows["sweep/none-none-1"]["status"] == "finished"
    assert rows["sweep/deferred-p75-2"]["status"] == "failed"
    killed = rows["sweep/deferred-p50-1"]
    assert (killed["status"], killed["seed"], killed["choice/mask_ratio"]) == ("unfinished", "1", "p50")
    assert "no result.json" in killed["error"]


def test_runs_whose_names_make_a_table_that_no_memory_holds_are_refused(make_run, tmp_path):
    for seed in range(100):
        make_run("none", "none", seed, **{f"number_{seed}_{i}": i for i in range(500)})
    with pytest.raises(SettingsError, match=r"100 runs have 50,\d+ different .*/none-none-\d+ alone has 5\d\d"):
        collect(find_runs([tmp_path / "sweep"]))


def test_what_lies_in_a_runs_folder_is_no_run_of_its_own(headline):
    inside = headline / "none-none-1/wandb/run-1/files"
    inside.mkdir(parents=True)
    (inside / "config.yaml").write_text("_wandb: {}\n")
    assert len(find_runs([headline])) == 7


def test_an_error_is_one_line_without_the_folders_of_the_machine(headline):
    row = read_run(headline / "deferred-p75-2")
    assert row["error"] == "OSError: deferred.tar is damaged"


def test_a_damaged_record_is_told_not_dropped(headline):
    (headline / "none-none-1/result.json").write_text('{"status": ')
    row = read_run(headline / "none-none-1")
    assert row["status"] == "unreadable"
    assert row["choice/masking"] == "none"


@pytest.mark.parametrize("file", ["result.json", "config.yaml"])
@pytest.mark.parametrize("content", ["[]", "3", "a: [b"])
def test_what_is_no_record_or_no_settings_is_told_not_dropped(headline, file, content):
    (headline / "none-none-1" / file).write_text(content)
    row = read_run(headline / "none-none-1")
    assert row["status"] == "unreadable"
    assert row["error"].startswith(file)
    assert len(collect(find_runs([headline]))) == 7


def test_a_line_of_metrics_that_a_kill_cut_short_is_left_out(make_run):
    run = make_run("naive", "p75")
    whole = curves([run])
    for cut in ("4,0.3", ",", '"4'):
        path = run / "metrics.csv"
        text = path.read_text()
        path.write_text(text + cut)
        assert curves([run]) == whole, cut
        path.write_text(text)


def test_a_table_read_back_is_the_table_that_was_written(headline, tmp_path):
    rows = collect(find_runs([headline]))
    write_csv(rows, tmp_path / "results.csv")
    assert read_csv(tmp_path / "results.csv", FIRST_COLUMNS) == rows
    assert number(rows[0], "validation/loss") is None  # deferred p50 was killed
    assert [number(row, "validation/loss") for row in rows if row["choice/masking"] == "none"] == [0.41, 0.42]


def test_runs_are_found_in_sweeps_and_by_themselves_and_only_once(headline):
    run = headline / "none-none-1"
    assert find_runs([run]) == [run]
    assert len(find_runs([run, headline])) == 7


def test_numbered_runs_are_in_the_order_of_their_numbers(make_run, tmp_path):
    for number_ in (10, 2, 1):
        make_run("naive", "p75", seed=number_)
    assert [run.name for run in find_runs([tmp_path])] == ["naive-p75-1", "naive-p75-2", "naive-p75-10"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="holds no run"):
        find_runs([tmp_path])


def test_settings_that_differ_are_columns_and_places_and_devices_are_none(make_run):
    same = {"optimizer": {"beta2": 0.99}, "model": {"attention_ratios": [0.5, 1.0]}}
    for seed, depth in ((1, 0.5), (2, 2), (3, 2.0)):
        aside = {
            "paths": {"data_root": f"data{seed}"},
            "init_from": f"runs/{seed}",
            "metrics": {"fid": {"count": seed}},
        }
        trainer = {"max_steps": 100 * seed, "devices": seed}
        settings = {**same, **aside, "variation": {"patch_mixer_depth": depth}, "trainer": trainer}
        run = make_run("deferred", "p75", seed, status="killed" if seed == 3 else "finished", settings=settings)
    rows = collect(find_runs([run.parent]))
    assert {name for name in rows[0] if name.startswith("setting/")} == {
        "setting/trainer.max_steps",
        "setting/variation.patch_mixer_depth",
    }
    assert [row["setting/variation.patch_mixer_depth"] for row in rows] == ["0.5", "2", "2"]


def test_a_setting_that_only_some_runs_have_is_a_difference(make_run):
    runs = [make_run("deferred", "p75", seed, settings={"model": {"dim": 32}}) for seed in (1, 2)]
    runs.append(make_run("deferred", "p75", 3, settings={"model": {"dim": 32, "bias": True}}))
    (runs[1] / "config.yaml").unlink()  # nothing is known of its settings
    assert [row["setting/model.bias"] for row in collect(runs)] == ["not set", "", "true"]


def test_a_run_that_starts_from_another_differs_from_one_that_does_not(make_run):
    runs = [make_run("deferred", "p75", seed, settings={"init_from": start}) for seed, start in ((1, None), (2, "x"))]
    assert [row["setting/init_from"] for row in collect(runs)] == ["null", "another run"]


def test_settings_hold_no_folders_of_the_machine(make_run):
    for seed in (1, 2):
        made = {"data_mix": {"sources": [{"folder": f"/home/somebody/{seed}"}]}}
        run = make_run("deferred", "p75", seed, settings=made)
    assert [row["setting/data_mix.sources"] for row in collect(find_runs([run.parent]))] == [
        '[{"folder": "1"}]',
        '[{"folder": "2"}]',
    ]


def test_two_sweeps_of_one_name_are_refused(headline, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/sweep").symlink_to(headline)
    copy = tmp_path / "elsewhere/sweep/none-none-1"
    copy.mkdir(parents=True)
    (copy / "result.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(SettingsError, match="two of these runs are called sweep/none-none-1"):
        collect(find_runs([headline, tmp_path / "elsewhere"]))


def test_curves_hold_what_was_logged_by_steps_done(make_run):
    points = curves([make_run("naive", "p75", loss=0.5)])
    assert [point["step"] for point in points] == ["1", "2", "3", "4"]
    assert [point["train_loss"] for point in points] == ["2.5", "2", "1.5", "1"]
    assert [point["validation_loss"] for point in points] == ["", "1.5", "", "0.5"]
    assert [point["flops"] for point in points] == ["1000", "2000", "3000", "4000"]


def test_long_curves_are_averaged_over_stretches(make_run):
    run = make_run("naive", "p75")
    lines = ["step,train/loss", *(f"{step},{step}" for step in range(400))]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    points = curves([run])
    assert len(points) == 40
    assert points[0] == {
        "run": "sweep/naive-p75-1",
        "step": "10",
        "flops": "",
        "train_loss": "4.5",
        "validation_loss": "",
    }


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-cmd", "@a", "'=1", "''@a", "-0.5", "+1e3", "'a", "a=b", ""])
def test_no_cell_is_a_formula_and_each_is_read_as_it_was(tmp_path, text):
    write_csv([{"run": text, text or "b": "1"}], tmp_path / "a.csv")
    assert read_csv(tmp_path / "a.csv", ["run"]) == [{"run": text, text or "b": "1"}]
    with (tmp_path / "a.csv").open(newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert not [cell for cell in cells if cell[:1] in {*"=+-@"} and number({"": cell}, "") is None]


def test_a_table_of_a_million_empty_rows_is_refused_before_it_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "MOST_CELLS", 1_000)
    (tmp_path / "a.csv").write_text("run,step\n" + ",\n" * 200)
    assert len(read_csv(tmp_path / "a.csv")) == 200
    (tmp_path / "a.csv").write_text("run,step\n" + ",\n" * 10_000)
    with pytest.raises(SettingsError, match="has more than 201 rows, and a table holds no more"):
        read_csv(tmp_path / "a.csv")
