"""Freed memory is used again: a second pass over the same buffers takes no new pages."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from grcn.run.backend import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        [torch.ones(2**23) for _ in range(8)]  # 256 MB, all free again after it
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again():
    counts = {}
    for how in ("kept", "given back"):
        command = [sys.executable, "-c", PROGRAM, how]
        # Else what glibc does depends on what happens to lie behind the buffers.
        env = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
        counts[how] = int(subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout)
    # Pages may be huge, and the system may take some back meanwhile.
    assert counts["given back"] > 4 * counts["kept"] + 100


def test_other_systems_are_left_alone(monkeypatch):
    from grcn.run import backend as memory

    monkeypatch.setattr(sys, "platform", "darwin")
    opened = []
    monkeypatch.setattr(memory.ctypes, "CDLL", opened.append)
    memory.keep_freed_memory()
    assert not opened
