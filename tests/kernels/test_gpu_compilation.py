"""Triton compiles the kernels for GPUs that are not here, and they fit: they are few, and several run at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "compiled_kernels.py"
REGISTERS, SHARED = 65536, 227 * 1024  # of one multiprocessor of an H100
MOST_KERNELS = 24  # a network of any depth and widths takes no more in bfloat16; each takes about a second


@pytest.fixture(scope="module")
def kernels(tmp_path_factory) -> list[tuple[str, int, int]]:
    """Name, registers of a thread and bytes of shared memory, for compute capability 9.0."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, str(SCRIPT), "90"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = [line.split() for line in ended.stdout.splitlines()]
    return [(name, int(registers), int(shared)) for name, registers, shared in lines]


def test_they_are_few_whatever_the_network(kernels):
    assert 15 <= len(kernels) <= MOST_KERNELS


def test_two_blocks_of_each_fit_a_multiprocessor(kernels):
    for name, registers, shared in kernels:
        warps = 8 if "silu" in name else 4
        assert 2 * registers * 32 * warps <= REGISTERS, name
        assert 2 * shared <= SHARED, name
