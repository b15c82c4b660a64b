"""Memory that a step frees is the next step's."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from microdit.kernels.cpu.host_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(20):  # until the holes it leaves fit
    torch.ones(10_000_000)
before = faults()
for _ in range(5):
    torch.ones(10_000_000)
print(faults() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's memory")
def test_kept_memory_is_not_asked_for_again():
    def faults(how):
        return int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)

    assert faults("kept") < 100 < faults("given back")
