"""Times a detector on one made-up image: training steps and detections, as ``tools/benchmark.py`` prints them."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from . import build
from .config import Config
from .describe import Part, describe
from .models.features import TASKS

OBJECTS = 8


def costs(cfg: Config) -> tuple[list[Part], dict[str, int]]:
    """Describes a config's model at its own image size; returns the parts and the strides of the maps by task."""
    classes = len(build.usual_classes(cfg.data)) + 1
    with torch.device("meta"):
        specs = build.build_model(cfg.model, classes).backbone.feature_specs
    parts = describe(cfg.model, classes, cfg.model.image.short, cfg.model.image.max, cfg.model.rpn.post_nms_test)
    return parts, {task: specs[task].stride for task in TASKS}


def measure(cfg: Config, device: torch.device, repeats: int) -> dict[str, object]:
    """Times training steps and detections in one image of random pixels with eight random objects.

    The weights are random: no file is read. One step and one detection are not counted. The image is as large as the
    config's images get.

    Returns:
        ``step_ms`` and ``infer_ms``, medians; ``steps_ms`` and ``infers_ms``, all of them; ``losses`` of the last step;
        ``peak_mb``, of the device's memory or of the process's.
    """
    model = build.build_model(cfg.model, len(build.usual_classes(cfg.data)) + 1, cfg.run.seed).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)
        torch.cuda.reset_peak_memory_stats(device)
    optimizer = build.build_optimizer(cfg.train, model)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=cfg.run.amp == "bf16")
    image, target = _scene(cfg, device)
    losses: dict[str, Tensor] = {}

    def step() -> None:
        model.train()
        with amp:
            losses.update(model([image], [target]))
        torch.stack(list(losses.values())).sum().backward()
        # A step of full size with random weights would soon leave the finite numbers: only its time is of interest.
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def infer() -> None:
        model.eval()
        with amp:
            model([image])

    steps, infers = _interleaved([step, infer], repeats, device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "amp": cfg.run.amp,
        "step_ms": statistics.median(steps),
        "infer_ms": statistics.median(infers),
        "peak_mb": _peak_mb(device),
        "losses": {name: value.item() for name, value in losses.items()},
        "steps_ms": steps,
        "infers_ms": infers,
    }


def as_json(parts: list[Part], strides: dict[str, int]) -> dict[str, object]:
    """Puts a description into plain types."""
    return {
        "parameters": sum(part.parameters for part in parts),
        "gmac": sum(part.gmac for part in parts),
        "parts": [asdict(part) for part in parts],
        "strides": strides,
    }


def _scene(cfg: Config, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Makes an image ``[3, short, max]`` and eight boxes, each a twentieth to a half of it on a side."""
    generator = torch.Generator().manual_seed(cfg.run.seed)
    height, width = cfg.model.image.short, cfg.model.image.max
    image = torch.rand(3, height, width, generator=generator)
    extent = torch.tensor([width, height])
    sides = (0.05 + 0.45 * torch.rand(OBJECTS, 2, generator=generator)) * extent
    corners = torch.rand(OBJECTS, 2, generator=generator) * (extent - sides)
    labels = torch.randint(1, len(build.usual_classes(cfg.data)) + 1, (OBJECTS,), generator=generator)
    boxes = torch.cat([corners, corners + sides], 1)
    return image.to(device), {"boxes": boxes.to(device), "labels": labels.to(device)}


def _interleaved(variants: list[Callable[[], None]], repeats: int, device: torch.device) -> list[list[float]]:
    """Runs all variants in turn, once uncounted and then ``repeats`` times; returns the milliseconds of each."""
    found: list[list[float]] = [[] for _ in variants]
    for turn in range(repeats + 1):
        for variant, times in zip(variants, found, strict=True):
            _wait(device)
            start = time.perf_counter()
            variant()
            _wait(device)
            if turn > 0:
                times.append(1000 * (time.perf_counter() - start))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
