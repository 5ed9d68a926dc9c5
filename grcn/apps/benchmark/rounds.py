"""Runs the variants that are compared in turn, and divides the times of each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from grcn.apps.benchmark.parts import timed
from grcn.progress import progress_bar

Variants = dict[str, Callable[[], object]]
Times = dict[str, list[float]]

# The variants that times are divided by; their names for a detection begin with infer_.
OTHERS = ("floor", "torchvision", "baseline", "compiled")


def interleaved(variants: Variants, repeats: int, device: torch.device) -> tuple[Times, Times]:
    """Runs all variants in turn, ``repeats`` times. They have run before.

    Returns:
        Wall-clock milliseconds of each, and CPU milliseconds over all threads of the process: beside other work on the
        same cores, wall time mostly measures that work.
    """
    wall: Times = {name: [] for name in variants}
    cpu: Times = {name: [] for name in variants}
    with progress_bar(desc="benchmark", total=repeats * len(variants), leave=False) as bar:
        for _ in range(repeats):
            for name, variant in variants.items():
                seconds, cpu_seconds = timed(variant, device)
                wall[name].append(1000 * seconds)
                cpu[name].append(1000 * cpu_seconds)
                bar.update()
    return wall, cpu


def ratios(times: Mapping[str, list[float]]) -> Times:
    """Divides the times of each round by those of :data:`OTHERS` in that round."""
    return {
        f"{prefix}ratio_to_{other}": [a / b for a, b in zip(times[ours], times[prefix + other], strict=True)]
        for ours, prefix in (("step", ""), ("infer", "infer_"))
        for other in OTHERS
        if prefix + other in times
    }
