"""metrics.csv at any moment, after any end."""

import resource

import pytest

from microdit.files import DamagedFileError
from microdit.kinds import SettingsError
from microdit.runs import metrics
from microdit.runs.metrics import read_rows
from microdit.training.callbacks.loggers import MetricsFile, PatientTensorBoard, refuse_settings_beside
from microdit.training.run import loggers

rows = read_rows


def test_rows_are_on_disk_as_soon_as_they_are_logged(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 1.5, "epoch": 0}, step=0)
    assert rows(log.path) == [{"step": "0", "train/loss": "1.5"}]
    log.log_metrics({"train/loss": 1.25}, step=1)
    assert [row["train/loss"] for row in rows(log.path)] == ["1.5", "1.25"]


def test_a_new_column_and_a_second_entry_for_a_step_join_the_table(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 1.5}, step=0)
    log.log_metrics({"validation/loss": 2.0}, step=0)
    log.log_metrics({"train/loss": 1.0}, step=1)
    assert rows(log.path) == [
        {"step": "0", "train/loss": "1.5", "validation/loss": "2.0"},
        {"step": "1", "train/loss": "1.0", "validation/loss": ""},
    ]


def test_a_reopened_file_goes_on_and_forgets_what_is_repeated(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    for step in range(4):
        log.log_metrics({"train/loss": float(step)}, step=step)
    with log.path.open("a") as file:
        file.write("4,")  # killed in the middle of a row
    again = MetricsFile(log.path)
    again.forget_after(1)
    again.log_metrics({"train/loss": 9.0}, step=2)
    assert [row["train/loss"] for row in rows(log.path)] == ["0.0", "1.0", "9.0"]


def test_rows_that_found_no_room_are_there_when_there_is_some(tmp_path, caplog):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 1.0}, step=0)
    size = log.path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        log.log_metrics({"train/loss": 2.0}, step=1)
        log.log_metrics({"train/loss": 3.0}, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.text
    log.log_metrics({"train/loss": 4.0}, step=3)
    assert [row["train/loss"] for row in rows(log.path)] == ["1.0", "2.0", "3.0", "4.0"]


def test_the_newest_value_of_every_column_is_found(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    assert log.newest() == {}
    log.log_metrics({"train/seconds": 2.5}, step=0)
    log.log_metrics({"train/loss": 1.0}, step=1)
    log.log_metrics({"train/loss": 0.5}, step=2)
    assert MetricsFile(log.path).newest() == {"train/seconds": 2.5, "train/loss": 0.5}


@pytest.mark.parametrize("name", ["$SECRET", "${SECRET}", "~"])
def test_tensorboard_puts_nothing_into_names(tmp_path, monkeypatch, name):
    monkeypatch.setenv("SECRET", "secret")
    board = PatientTensorBoard(str(tmp_path / name), name="", version="tensorboard")
    assert board.log_dir == str(tmp_path / name / "tensorboard")
    assert (
        PatientTensorBoard(str(tmp_path), name="a", version=3, sub_dir=name).log_dir == f"{tmp_path}/a/version_3/{name}"
    )


def test_rows_by_the_million_and_rows_of_nothing_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n" + "1,\n" * 3)
    with pytest.raises(DamagedFileError, match=r"line 2, is damaged \(it has no value\)"):
        rows(path)
    path.write_text("step,a\n" + "1,1\n" * 3)
    assert len(rows(path)) == 3
    monkeypatch.setattr(metrics, "MOST_ROWS", 2)
    with pytest.raises(DamagedFileError, match="has over 2 rows, more than a run logs"):
        rows(path)


def written(folder, name: str, text: str) -> None:
    (folder / name).mkdir()
    (folder / name / "settings").write_text(text)


@pytest.mark.parametrize("name", ["wandb", ".wandb"])
@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("base_url = http://127.0.0.1:1", "says base_url, .* export WANDB_BASE_URL"),
        ("x_executable = /bin/false", "says x_executable"),
        ("https_proxy: http://127.0.0.1:1", "says https_proxy"),
        ("no setting", "cannot be read"),
    ],
)
def test_nobody_tells_weights_and_biases_where_to_send_things(tmp_path, monkeypatch, run_settings, name, setting, told):
    written(tmp_path, name, f"[default]\nproject = mine\n{setting}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    with pytest.raises(SettingsError, match=told), loggers(run_settings("logger=wandb")):
        pass
    with loggers(run_settings("logger=csv")):
        pass


def test_ones_own_workspace_of_weights_and_biases_is_welcome(tmp_path, monkeypatch):
    refuse_settings_beside(tmp_path)
    written(tmp_path, "wandb", "[default]\nentity = me\nproject = mine\nbase_url = https://ours.org\n")
    monkeypatch.setenv("WANDB_BASE_URL", "https://ours.org")
    refuse_settings_beside(tmp_path)


def test_a_value_that_is_no_number_is_told_with_its_line(tmp_path):
    log = MetricsFile(tmp_path / "metrics.csv")
    log.log_metrics({"train/loss": 1.5, "train/seconds": float("nan")}, step=0)
    log.log_metrics({"train/loss": 1.5, "train/seconds": "abc"}, step=1)
    with pytest.raises(DamagedFileError, match=r"metrics\.csv, line 3, .*train/seconds is 'abc', which is no number"):
        MetricsFile(log.path)
