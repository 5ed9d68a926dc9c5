"""Measures a GPU by one command: the tests for it, then every family of models, most valuable first.

A case that fails is noted, and the next one is begun; after each, what is known is on the disk.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from grcn.apps.benchmark.counts import count
from grcn.apps.benchmark.measure import add_torchvision, add_what_runs, prepare
from grcn.apps.benchmark.parts import busy_ms
from grcn.apps.benchmark.roofline import Limits, measure_limits, roofline_ms
from grcn.apps.benchmark.rounds import Variants, interleaved
from grcn.apps.benchmark.text import suite_as_markdown
from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.engine.environment import device_name, instruction_sets
from grcn.engine.step import peak_mb
from grcn.errors import one_line
from grcn.fileio import write_durably
from grcn.models.compiled import compile_parts
from grcn.progress import progress_bar
from grcn.run.backend import prepare as prepare_backend

ROOT = Path(__file__).resolve().parents[3]
FAMILIES = {
    "VGG16": "coco/{}_vgg16.yaml",
    "ResNet50-C4": "coco/{}_resnet50.yaml",
    "ResNet50-det": "coco/{}_resnet50_det.yaml",
    "ResNet50-FPN": "coco/{}_resnet50_fpn.yaml",
}
METHODS = {"Faster R-CNN": "faster_rcnn", "G-RCN": "grcn"}
PRECISIONS = {"bf16": ["run.amp=bf16"], "fp32": [], "tf32": ["run.tf32=true"]}
BATCHES = (1, 8)


@dataclass(frozen=True)
class Case:
    """A model in a setting; ``mode`` is of ``run.compile``."""

    family: str
    method: str
    precision: str
    batch: int
    mode: str

    def config(self, overrides: list[str]) -> Config:
        """Returns its config, of random weights."""
        path = ROOT / "configs" / FAMILIES[self.family].format(METHODS[self.method])
        settings = ["model.weights=null", f"run.compile={self.mode}", *PRECISIONS[self.precision]]
        return load_config(path, [*settings, *overrides])


def cases() -> Iterator[Case]:
    """Yields all cases, most valuable first; those that compile take a minute each, and may find no time."""
    settings = [
        (mode, batch, precision)
        for mode in ("none", "default", "reduce-overhead")
        for batch in BATCHES
        for precision in PRECISIONS
    ]
    first = [*(("none", 1, precision) for precision in PRECISIONS), ("default", 1, "bf16")]
    for mode, batch, precision in [*first, *(setting for setting in settings if setting not in first)]:
        for family in FAMILIES:
            for method in METHODS:
                yield Case(family, method, precision, batch, mode)


def run_suite(
    folder: Path, device: torch.device, overrides: list[str], seconds: float, repeats: int = 5, tests: bool = True
) -> dict[str, Any]:
    """Runs the tests marked ``cuda`` and times all cases, as far as the time goes.

    Args:
        folder: gets ``suite.json`` and ``suite.md``, written anew after every case.
        overrides: settings that replace those of every config.
        seconds: no case is begun after so many.
        repeats: rounds of each case.
        tests: run the tests too, in another process.

    Raises:
        ConfigError: settings that one of the configs does not have.

    Returns:
        What ``suite.json`` holds.
    """
    every = list(cases())
    for case in every[: len(FAMILIES) * len(METHODS)]:
        case.config(overrides)
    end = time.monotonic() + seconds
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "device": device_name(device),
        "instruction_sets": instruction_sets(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "overrides": overrides,
        "tests": _run_tests(folder, seconds / 3) if tests else None,
        "limits": {},
        "cases": [],
        "left_out": 0,
    }
    with progress_bar(desc="suite", total=len(every), leave=False) as bar:
        for number, case in enumerate(every):
            if time.monotonic() > end:
                found["left_out"] = len(every) - number
                break
            found["cases"].append(asdict(case) | _measure(case, device, overrides, repeats, found["limits"]))
            _write(folder, found)
            bar.update()
    _write(folder, found)
    return found


def _run_tests(folder: Path, seconds: float) -> dict[str, Any]:
    """Runs the tests for a GPU; returns their exit code and last line, and leaves the rest in ``tests.txt``."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "tests"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"code": None, "last": one_line(str(error))}
    (folder / "tests.txt").write_text(done.stdout + done.stderr, encoding="utf-8")
    lines = (done.stdout or done.stderr).strip().splitlines()
    return {"code": done.returncode, "last": lines[-1] if lines else ""}


def _measure(
    case: Case, device: torch.device, overrides: list[str], repeats: int, limits: dict[str, Limits]
) -> dict[str, Any]:
    """Times one case; returns its figures, or the error that stopped it.

    Args:
        limits: of the device in each precision; what is not known yet is measured.
    """
    try:
        cfg = case.config(overrides)
        prepare_backend(cfg, device)
        # By default torch convolves with TF32 but does not multiply so: fp32 is neither, tf32 is both.
        torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
        if case.precision not in limits:
            dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
            limits[case.precision] = measure_limits(device, dtype)
        return _figures(cfg, device, case.batch, repeats, limits[case.precision])
    except Exception as error:  # whatever a device makes torch raise, the other cases matter
        return {"error": one_line(f"{type(error).__name__}: {error}", 200)}
    finally:
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _figures(cfg: Config, device: torch.device, batch: int, repeats: int, limits: Limits) -> dict[str, Any]:
    work = prepare(cfg, device, batch)
    found: dict[str, Any] = {"peak_mb": peak_mb(device)}
    variants: Variants = {"step": work.step, "infer": work.infer}
    missing: list[str] = []
    if cfg.run.compile == "none":
        found["counts"] = {"step": count(work.step), "infer": count(work.infer)}
        found["roofline_ms"] = roofline_ms(work.step, limits)
        found["infer_roofline_ms"] = roofline_ms(work.infer, limits)
        missing = add_torchvision(variants, None, cfg, work, device)
    else:
        compile_parts(work.model, cfg.run.compile)
        start = time.monotonic()
        missing = add_what_runs({}, dict(variants), "compiled")
        if missing:
            return {"error": missing[0]}
        found["compile_s"] = time.monotonic() - start
    wall, cpu = interleaved(variants, repeats, device)
    for name, values in wall.items():
        found[f"{name}_ms"] = statistics.median(values)
        found[f"{name}_cpu_ms"] = statistics.median(cpu[name])
    if device.type == "cuda":
        found |= {"busy_ms": busy_ms(work.step), "infer_busy_ms": busy_ms(work.infer)}
    return found | {"missing": missing}


def _write(folder: Path, found: dict[str, Any]) -> None:
    write_durably(folder / "suite.json", (json.dumps(found, indent=1) + "\n").encode())
    write_durably(folder / "suite.md", (suite_as_markdown(found) + "\n").encode())
