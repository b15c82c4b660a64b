"""Tests of what is compiled on this computer are left out where there is no compiler, and say so."""

import shutil

import pytest

from microdit.kernels.cpu.operations import compiler_command

needs_compiler = pytest.mark.skipif(
    shutil.which(compiler_command()[0]) is None, reason=f"there is no compiler {compiler_command()[0]}"
)
