"""Measures a GPU by one command: the tests for it, then every family of models, most valuable first.

A case that fails is recorded, and the next one starts; after each, the results so far are on the disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from grcn.apps.benchmark.roofline import Limits
from grcn.apps.benchmark.suite_case import FAMILIES, METHODS, PRECISIONS, Case, CaseProcess, Measure, measure_case
from grcn.apps.benchmark.text import suite_as_markdown
from grcn.engine.environment import device_name, instruction_sets
from grcn.errors import one_line
from grcn.fileio import write_durably
from grcn.progress import progress_bar

ROOT = Path(__file__).resolve().parents[3]
BATCHES = (1, 8)
MODES = ("none", "default", "reduce-overhead")


def cases() -> Iterator[Case]:
    """Yields every case once, most valuable first: bf16 with one image, then one family compiled in both modes."""
    every = [
        Case(family, method, precision, batch, mode)
        for mode in MODES
        for precision in PRECISIONS
        for batch in BATCHES
        for family in FAMILIES
        for method in METHODS
    ]
    first = [case for case in every if case.precision == "bf16" and case.batch == 1]
    eager = [case for case in first if case.mode == "none"]
    compiled = [case for case in first if case.mode != "none" and case.family == "ResNet50-C4"]
    yield from dict.fromkeys([*eager, *compiled, *every])


def run_suite(
    folder: Path,
    device: torch.device,
    overrides: list[str],
    seconds: float,
    repeats: int = 5,
    tests: bool = True,
    measure: Measure = measure_case,
) -> dict[str, Any]:
    """Runs the tests marked ``cuda`` and times as many cases as the time allows.

    Args:
        folder: gets ``suite.json`` and ``suite.md``, rewritten after every case, and ``tests.txt``.
        device: the device of the cases.
        overrides: settings that replace those of every config, ``run.device`` among them.
        seconds: time limit; a case still running then is stopped, and no other starts; none gets more than a third.
        repeats: rounds of each case.
        tests: run the tests too, in another process, for a third of the time at most.
        measure: measures a case, in a separate process.

    Raises:
        ConfigError: settings that one of the configs does not have, or that the cases choose.

    Returns:
        The contents of ``suite.json``.
    """
    every = list(cases())
    models = {(case.family, case.method): case for case in every}
    forms = {(case.precision, case.mode): case for case in every}
    for case in (*models.values(), *forms.values()):
        case.config(overrides)
    end = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    limits: dict[str, Limits] = {}
    found: dict[str, Any] = {
        "device": device_name(device),
        "instruction_sets": instruction_sets(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "overrides": overrides,
        "tests": _run_tests(folder / "tests.txt", seconds / 3) if tests else None,
        "limits": {},
        "cases": [],
        "left_out": len(every),
    }
    _write(folder, found)
    process = CaseProcess(measure)
    try:
        for case in progress_bar(every, "suite", len(every), leave=False):
            if (left := end - time.monotonic()) <= 0:
                break
            figures = process.run(min(left, seconds / 3), case, overrides, repeats, limits.get(case.precision))
            if "error" in figures and time.monotonic() >= end:  # the end of the time, not a fault of the case
                break
            if "limits" in figures:
                limits[case.precision] = figures.pop("limits")
                found["limits"][case.precision] = limits[case.precision]._asdict()
            found["cases"].append(case._asdict() | figures)
            found["left_out"] -= 1
            _write(folder, found)
    finally:
        process.end()
    return found


def _run_tests(output: Path, seconds: float) -> dict[str, Any]:
    """Runs the tests for a GPU, the shortest first; returns their exit code and last line."""
    if not (ROOT / "tests/test_cuda.py").is_file():
        return {"code": None, "last": "not in an installed package; use a clone"}
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "tests/test_cuda.py"]
    with output.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            [*command, "tests"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # also what a test left running
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = f"stopped after {seconds:.3g} s" if code is None else lines[-1] if lines else ""
    return {"code": code, "last": one_line(last)}


def _write(folder: Path, found: dict[str, Any]) -> None:
    write_durably(folder / "suite.json", (json.dumps(found, indent=1) + "\n").encode())
    write_durably(folder / "suite.md", (suite_as_markdown(found) + "\n").encode())
