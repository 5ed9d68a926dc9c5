"""Times a step and a detection as images, pixels, objects and classes grow, one at a time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch

from grcn.apps.benchmark.describe import image_size
from grcn.apps.benchmark.measure import prepare
from grcn.apps.benchmark.rounds import interleaved
from grcn.config.schema import Config

_IMAGES = (1, 2, 4, 8)
_SIZES = (0.5, 0.75, 1.0, 1.5)
_OBJECTS = (1, 10, 50, 100, 200, 500)
_CLASSES = (1, 20, 80, 365, 1203)


def measure_scaling(cfg: Config, device: torch.device, repeats: int) -> dict[str, dict[str, list[float]]]:
    """Times a model with random weights while one quantity varies; the others are those of :func:`prepare`.

    Returns:
        By quantity (``images``, ``megapixels``, ``objects``, ``classes``): ``values``, and ``step_ms`` and
        ``infer_ms``, medians at each.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for quantity, value, case, how in _cases(cfg):
        work = prepare(case, device, **how)
        times, _ = interleaved({"step": work.step, "infer": work.infer}, repeats, device)
        series = found.setdefault(quantity, {"values": [], "step_ms": [], "infer_ms": []})
        series["values"].append(value)
        for name, milliseconds in times.items():
            series[f"{name}_ms"].append(statistics.median(milliseconds))
    return found


def _cases(cfg: Config) -> Iterator[tuple[str, float, Config, dict[str, Any]]]:
    for images in _IMAGES:
        yield "images", images, cfg, {"images": images}
    for factor in _SIZES:
        image = cfg.model.image
        sides = {"short": round(image.largest * factor), "max": round(image.max * factor)}
        model = cfg.model.model_copy(update={"image": image.model_copy(update=sides)})
        case = cfg.model_copy(update={"model": model})
        yield "megapixels", math.prod(image_size(case)) / 1e6, case, {}
    for objects in _OBJECTS:
        yield "objects", objects, cfg, {"objects": objects}
    for classes in _CLASSES:
        yield "classes", classes, cfg, {"classes": classes}
