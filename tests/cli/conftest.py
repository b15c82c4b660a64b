"""Entry points as a user runs them: in a process of their own, in the repository, with results elsewhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    # Byte code is cached, and one thread: the machine may be busy with other tests.
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="session")
def paths(tmp_path_factory) -> list[str]:
    root = tmp_path_factory.mktemp("cli")
    return [f"paths.data_root={root / 'data'}", f"paths.output_root={root / 'runs'}"]


@pytest.fixture(scope="session")
def run_script():
    """run_script("train.py", "a=b", ...) -> the completed process, its output as text."""

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)

    return run


@pytest.fixture(scope="session")
def start_script():
    """The same, without waiting for its end."""

    def start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, script, *arguments], cwd=ROOT, env=environment(), **quiet)

    return start
