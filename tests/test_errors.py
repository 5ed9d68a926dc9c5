"""Exit codes of faults that no tool's own test reaches, and how threads of a tool wait for each other."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from waiting import HANG

from grcn import errors

ROOT = Path(__file__).resolve().parents[1]


def test_memory_that_runs_out_on_a_cpu_is_one_line_too(capsys):
    with pytest.raises(SystemExit) as stopped:
        errors.main(lambda: torch.empty(10**16) and 0)
    assert stopped.value.code == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("grcn: error: out of memory") and "lower model.image.short" in line


def test_other_runtime_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="size of tensor"):
        errors.main(lambda: torch.zeros(2) + torch.zeros(3))


def environment_of_openmp(*arguments, **variables):
    """Returns what OpenMP says about waiting in a process that imports torch; empty where it is not libgomp."""
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    process = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANG, check=True,
        env={**unset, "OMP_DISPLAY_ENV": "VERBOSE", **variables},
    )  # fmt: skip
    return dict(re.findall(r"(OMP_WAIT_POLICY|GOMP_SPINCOUNT) = '(\w+)'", process.stderr))


def test_threads_of_a_tool_spin_briefly_unless_the_user_says_how_long():
    tool = ["tools/benchmark.py", "--describe", "--config", "configs/shapes/grcn_tiny.yaml"]
    if not (of_library := environment_of_openmp("-c", "import torch, grcn.run.train")):
        pytest.skip("torch does not use libgomp here")
    assert environment_of_openmp(*tool)["GOMP_SPINCOUNT"] == "1000" != of_library["GOMP_SPINCOUNT"]
    assert environment_of_openmp(*tool, GOMP_SPINCOUNT="7")["GOMP_SPINCOUNT"] == "7"
    active = environment_of_openmp(*tool, OMP_WAIT_POLICY="ACTIVE")
    assert active["OMP_WAIT_POLICY"] == "ACTIVE" and int(active["GOMP_SPINCOUNT"]) > 1000


def test_no_tool_imports_torch_before_it_has_read_its_arguments():
    # OpenMP reads its environment once, when torch is imported.
    program = """
import runpy, sys
from pathlib import Path
from grcn import errors
errors.main = lambda command: print(command.__globals__["__file__"], "torch" in sys.modules)
for path in sorted(Path("tools").glob("*.py")):
    if "errors.main(main)" in path.read_text() and path.name != "prepare_data.py":  # computes nothing
        runpy.run_path(str(path), run_name="__main__")
"""
    found = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = found.stdout.splitlines()
    assert len(lines) >= 10 and all(line.endswith("False") for line in lines), lines
