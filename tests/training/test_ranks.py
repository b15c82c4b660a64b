"""What is said of ranks that ended, and what to do next."""

import signal

from microdit.training.rank import leave_word
from microdit.training.ranks import first_error, who_was_killed
from microdit.training.resuming import to_resume


def test_a_killed_rank_is_named_with_the_run_to_go_on_with(tmp_path):
    told = who_was_killed({1: -signal.SIGKILL, 0: 1}, tmp_path)
    assert told is not None
    assert "rank 1 was killed by SIGKILL" in told
    assert told.endswith(f"Go on with resume={tmp_path}")
    assert who_was_killed({0: 1, 1: 75}, tmp_path) is None


def test_a_stage_goes_on_with_the_chain_it_belongs_to(tmp_path):
    stage = tmp_path / "2-second"
    assert to_resume(stage) == stage
    (tmp_path / "stages.yaml").touch()
    assert to_resume(stage) == tmp_path


def test_the_first_rank_that_failed_is_quoted(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    assert first_error(logs) is None
    leave_word(tmp_path, 1, ValueError("the cause"))
    leave_word(tmp_path, 0, RuntimeError("what followed"))
    assert first_error(logs) == "ValueError: the cause (rank 1)"


def test_a_rank_that_cannot_leave_word_says_it_aloud(tmp_path, capsys):
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "rank_0_error.json").symlink_to("/dev/full")  # every write there fails as on a full disk
    leave_word(tmp_path, 0, ValueError("the cause"))
    assert "ValueError: the cause" in capsys.readouterr().err
    assert first_error(logs) is None
