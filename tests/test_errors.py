"""Exit codes of faults that no tool's own test reaches."""

import pytest
import torch

from grcn import errors


def test_memory_that_runs_out_on_a_cpu_is_one_line_too(capsys):
    with pytest.raises(SystemExit) as stopped:
        errors.main(lambda: torch.empty(10**16) and 0)
    assert stopped.value.code == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("grcn: error: out of memory") and "lower model.image.short" in line


def test_other_runtime_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="size of tensor"):
        errors.main(lambda: torch.zeros(2) + torch.zeros(3))
