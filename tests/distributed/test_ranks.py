"""What is said of ranks that ended, and what to do next."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from microdit.build import SettingsError
from microdit.distributed.ranks import (
    PreemptedError,
    leave_word,
    meeting_place,
    python_of_a_rank,
    who_was_killed,
    words_of,
)
from microdit.runs.folder import to_resume


def test_a_killed_rank_is_named_with_the_run_to_go_on_with(tmp_path):
    told = who_was_killed({0: -signal.SIGTERM, 1: -signal.SIGKILL}, f"Go on with resume={tmp_path}")
    assert told is not None
    assert "rank 1 was killed by SIGKILL" in told
    assert told.endswith(f"Go on with resume={tmp_path}")
    assert who_was_killed({0: 1, 1: -signal.SIGTERM}, "") is None


def test_a_stage_goes_on_with_the_chain_it_belongs_to(tmp_path):
    stage = tmp_path / "2-second"
    assert to_resume(stage) == stage
    (tmp_path / "stages.yaml").touch()
    assert to_resume(stage) == tmp_path


@pytest.fixture
def error_file(tmp_path, monkeypatch):
    """error_file(rank): where torch's launcher tells a rank to leave word."""

    def of(rank: int):
        path = tmp_path / "started_now_x1" / "attempt_0" / str(rank) / "error.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
        return path

    return of


def test_what_the_ranks_of_one_start_say_is_found_and_the_first_can_be_told(error_file, tmp_path):
    assert words_of(tmp_path, "started_now") == []
    for rank, error in ((1, ValueError("the cause")), (0, RuntimeError("what followed"))):
        error_file(rank)
        leave_word(rank, error)
    assert words_of(tmp_path, "started_before") == []
    said = words_of(tmp_path, "started_now")
    first = min(said, key=lambda word: word["time"])
    assert (first["rank"], first["error"]) == (1, "ValueError: the cause")
    assert len(said) == 2


def test_torch_reads_the_word_that_a_rank_leaves(error_file):
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    path = error_file(1)
    leave_word(1, ValueError("the cause"))
    assert "the cause" in str(ProcessFailure(local_rank=1, pid=1, exitcode=1, error_file=str(path)).message)


def test_being_asked_to_stop_is_no_error_and_has_no_name_of_one(error_file, tmp_path):
    error_file(0)
    leave_word(0, PreemptedError("stopped at step 3"))
    assert words_of(tmp_path, "started_now")[0]["error"] == "stopped at step 3"


def test_a_rank_that_cannot_leave_word_says_it_aloud(error_file, tmp_path, capsys):
    error_file(0).symlink_to("/dev/full")  # every write there fails as on a full disk
    leave_word(0, ValueError("the cause"))
    assert "ValueError: the cause" in capsys.readouterr().err
    assert words_of(tmp_path, "started_now") == []


def test_machines_of_a_slurm_job_meet_at_the_first_of_them(monkeypatch):
    job = {"SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "node[07-08]", "SLURM_JOB_ID": "12345"}
    for name, value in {**job, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2"}.items():
        monkeypatch.setenv(name, value)
    place = meeting_place(SimpleNamespace(nodes=2))
    assert (place.backend, place.endpoint, place.get("rank"), place.max_nodes) == ("static", "node07:17345", 1, 2)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "16")
    with pytest.raises(SettingsError, match="start one task a node"):
        meeting_place(SimpleNamespace(nodes=2))


def test_several_machines_without_a_word_which_this_is_are_refused(monkeypatch):
    monkeypatch.delenv("SLURM_NODEID", raising=False)
    with pytest.raises(SettingsError, match="on several machines start with torchrun or SLURM"):
        meeting_place(SimpleNamespace(nodes=2))


def test_a_rank_loads_nothing_that_lies_in_the_folder_it_is_started_in(tmp_path, monkeypatch):
    for name in ("microdit", "ctypes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("open('loaded', 'w').close()")
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as of a launcher that was started with -m or -c
    arguments, environment = python_of_a_rank("microdit.training.rank")
    command = [sys.executable, *arguments, "1", tmp_path]  # of another launcher, so that it ends at once
    ended = subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "")
    assert not (tmp_path / "loaded").exists()


def test_a_rank_finds_the_packages_that_its_launcher_finds(tmp_path, monkeypatch):
    (tmp_path / "beside_train.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    _, environment = python_of_a_rank("microdit.training.rank")
    command = [sys.executable, "-P", "-c", "import beside_train"]
    subprocess.run(command, cwd="/", env={**os.environ, **environment}, check=True)
