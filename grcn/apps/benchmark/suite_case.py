"""Measures one case of the suite in a separate process, so that a CUDA error or a hang ends only that process."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from threading import Thread
from typing import Any, NamedTuple

import torch

from grcn.apps.benchmark.counts import count
from grcn.apps.benchmark.measure import add_torchvision, add_what_runs, prepare
from grcn.apps.benchmark.parts import busy_ms
from grcn.apps.benchmark.roofline import Limits, measure_limits, roofline_ms
from grcn.apps.benchmark.rounds import Variants, interleaved
from grcn.config.files import load_config
from grcn.config.schema import Config
from grcn.engine.distributed import local_device
from grcn.engine.step import peak_mb
from grcn.errors import ConfigError, one_line
from grcn.models.compiled import compile_parts
from grcn.run.backend import prepare as prepare_backend

FAMILIES = {
    "VGG16": "coco/{}_vgg16",
    "ResNet50-C4": "coco/{}_resnet50",
    "ResNet50-det": "coco/{}_resnet50_det",
    "ResNet50-FPN": "coco/{}_resnet50_fpn",
}
METHODS = {"Faster R-CNN": "faster_rcnn", "G-RCN": "grcn"}
PRECISIONS = {"bf16": ["run.amp=bf16"], "fp32": [], "tf32": ["run.tf32=true"]}


class Case(NamedTuple):
    """A model in a setting; ``mode`` is of ``run.compile``."""

    family: str
    method: str
    precision: str
    batch: int
    mode: str

    def config(self, overrides: list[str]) -> Config:
        """Returns its config, of random weights.

        Raises:
            ConfigError: overrides that the config does not have, or that choose what the case chooses.
        """
        path = FAMILIES[self.family].format(METHODS[self.method])
        own = ["model.weights=null", f"run.compile={self.mode}", *PRECISIONS[self.precision]]
        cfg, plain = load_config(path, [*own, *overrides]), load_config(path, own)
        for key in ("amp", "tf32", "compile"):
            if getattr(cfg.run, key) != getattr(plain.run, key):
                raise ConfigError(f"--gpu-suite: run.{key} is measured in every form; leave it out")
        return cfg


Figures = dict[str, Any]
# Measures a case with further settings in some rounds; the limits are None where they are not known yet.
Measure = Callable[[Case, list[str], int, "Limits | None"], Figures]


def measure_case(case: Case, overrides: list[str], repeats: int, limits: Limits | None) -> Figures:
    """Times one case; returns its figures, or the error that stopped it.

    Args:
        limits: of the device in this precision; None: measure them.
    """
    try:
        cfg = case.config(overrides)
        device = local_device(cfg.run.device)
        prepare_backend(cfg, device)
        # By default torch uses TF32 in convolutions but not in matrix products: fp32 is neither, tf32 is both.
        torch.backends.cudnn.allow_tf32 = case.precision == "tf32"
        if limits is None:
            limits = measure_limits(device, torch.bfloat16 if case.precision == "bf16" else torch.float32)
        found = {"limits": limits} | _figures(cfg, device, case.batch, repeats, limits)
        gc.collect()  # models refer to themselves
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        return found
    except Exception as error:  # whatever torch raises on this device, the other cases still run
        return {"error": one_line(f"{type(error).__name__}: {error}", 200)}


def _figures(cfg: Config, device: torch.device, batch: int, repeats: int, limits: Limits) -> Figures:
    work = prepare(cfg, device, batch)
    variants: Variants = {"step": work.step, "infer": work.infer}
    missing: list[str] = []
    found: Figures = {}
    if cfg.run.compile == "none":
        found["peak_mb"] = peak_mb(device)
        found["counts"] = {"step": count(work.step), "infer": count(work.infer)}
        found["roofline_ms"] = roofline_ms(work.step, limits)
        found["infer_roofline_ms"] = roofline_ms(work.infer, limits)
        missing = add_torchvision(variants, None, cfg, work, device)
    else:
        compile_parts(work.model, cfg.run.compile)
        start = time.monotonic()
        if missing := add_what_runs({}, dict(variants), "compiled"):
            return {"error": missing[0]}
        found["compile_s"] = time.monotonic() - start
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # compiling takes memory too
    wall, cpu = interleaved(variants, repeats, device)
    for name, values in wall.items():
        found[f"{name}_ms"] = statistics.median(values)
        found[f"{name}_cpu_ms"] = statistics.median(cpu[name])
    found.setdefault("peak_mb", peak_mb(device))
    if device.type == "cuda":
        found |= {"busy_ms": busy_ms(work.step), "infer_busy_ms": busy_ms(work.infer)}
    return found | {"missing": missing}


class CaseProcess:
    """A process that measures one case after another. After an error the next case gets a new one.

    Args:
        measure: the function that measures a case.
    """

    def __init__(self, measure: Measure = measure_case) -> None:
        self._measure = measure
        self._running: tuple[SpawnProcess, Connection] | None = None

    def run(self, seconds: float, *args: Any) -> Figures:
        """Returns the result of ``measure(*args)``, or an error: that it took longer, or that the process died."""
        if self._running is None:
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, self._measure))
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            self._running = process, ours
        process, pipe = self._running
        try:
            pipe.send(args)
            found: Figures = pipe.recv() if pipe.poll(seconds) else {"error": f"no result within {seconds:.3g} s"}
        except (EOFError, OSError):
            process.join()
            found = {"error": f"the process died (exit code {process.exitcode})"}
        if "error" in found:
            self.end()
        return found

    def end(self) -> None:
        """Kills the process and those that compile for it."""
        if self._running is not None:
            process, pipe = self._running
            self._running = None
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
            pipe.close()


def _serve(pipe: Connection, measure: Measure) -> None:
    os.setsid()  # a group, to be killed as one
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, OSError):  # the suite has gone
        while True:
            pipe.send(measure(*pipe.recv()))


def _end_with(suite: int) -> None:
    """Ends this process when the suite has ended in any way: a case that hangs would keep the GPU."""
    while os.getppid() == suite:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)
