"""Times a detector on one made-up image: training steps and detections, as ``tools/benchmark.py`` prints them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from .. import build
from ..config import Config
from ..describe import image_size
from ..models.detector import Detector, to_device
from .step import peak_mb, training_step

_OBJECTS = 8
# Standard deviation of the classifier's outputs.
_SPREAD = 3.0


def measure(cfg: Config, device: torch.device, repeats: int) -> dict[str, object]:
    """Times training steps and detections in one image of random pixels with eight random objects.

    The weights are random: no file is read. Scores are spread, so that both passes of the head have the work of a
    trained model. The first steps and detections are not counted. The image is as large as the config's images get, and
    there is one, whatever ``train.batch`` says.

    Returns:
        ``step_ms`` and ``infer_ms``, medians; ``steps_ms`` and ``infers_ms``, all; ``losses`` of the first step;
        ``localized_rois``, which the localization pass of a detection ran on; ``peak_mb``, the most memory of the
        device, or on a CPU of the process, until the end.
    """
    classes = len(build.usual_classes(cfg.data))
    model = to_device(build.build_model(cfg.model, classes + 1, cfg.run.seed), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    optimizer = build.build_optimizer(cfg.train, model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0  # steps of full size on noise would soon leave the finite numbers
    amp = torch.autocast(device.type, torch.bfloat16, enabled=cfg.run.amp == "bf16")
    image, target = _scene(cfg, classes, device)
    losses: dict[str, Tensor] = {}

    def step() -> None:
        losses.update(training_step(model, optimizer, [image], [target], amp))

    @torch.no_grad()
    def infer() -> None:
        model.eval()
        with amp:
            model([image])

    step()
    first = {name: value.item() for name, value in losses.items()}
    localized = _spread_scores(model, infer)
    steps, infers = _interleaved([step, infer], repeats, device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "amp": cfg.run.amp,
        "step_ms": statistics.median(steps),
        "infer_ms": statistics.median(infers),
        "localized_rois": localized,
        "peak_mb": peak_mb(device),
        "losses": first,
        "steps_ms": steps,
        "infers_ms": infers,
    }


def _spread_scores(model: Detector, infer: Callable[[], None]) -> int:
    """Scales the classifier until scores differ as much as a trained model's, and counts the RoIs that are localized.

    Scores of random weights are about equal, and below the threshold with many classes: on a CPU nothing would be
    localized, and suppression would have nothing to do. Without background among them every RoI is.
    """
    heads = model.roi_heads.heads
    seen: list[Tensor] = []
    hooks = [heads.cls_score.register_forward_hook(lambda module, inputs, output: seen.append(output))]
    infer()
    with torch.no_grad():
        heads.cls_score.weight.mul_(_SPREAD / seen[0].float().std().clamp(min=1e-6))
        heads.cls_score.bias[0] = -1e4
    hooks.append(heads.bbox_pred.register_forward_hook(lambda module, inputs, output: seen.append(output)))
    infer()
    for hook in hooks:
        hook.remove()
    return len(seen[-1])


def _scene(cfg: Config, classes: int, device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Makes an image of full size and eight boxes, each a twentieth to a half of it on a side."""
    generator = torch.Generator().manual_seed(cfg.run.seed)
    height, width = image_size(cfg)
    image = torch.rand(3, height, width, generator=generator)
    extent = torch.tensor([width, height])
    sides = (0.05 + 0.45 * torch.rand(_OBJECTS, 2, generator=generator)) * extent
    corners = torch.rand(_OBJECTS, 2, generator=generator) * (extent - sides)
    labels = torch.randint(1, classes + 1, (_OBJECTS,), generator=generator)
    boxes = torch.cat([corners, corners + sides], 1)
    return image.to(device), {"boxes": boxes.to(device), "labels": labels.to(device)}


def _interleaved(variants: list[Callable[[], None]], repeats: int, device: torch.device) -> list[list[float]]:
    """Runs all variants in turn, ``repeats`` times; returns the milliseconds of each. They have run before."""
    found: list[list[float]] = [[] for _ in variants]
    for _ in range(repeats):
        for variant, times in zip(variants, found, strict=True):
            _wait(device)
            start = time.perf_counter()
            variant()
            _wait(device)
            times.append(1000 * (time.perf_counter() - start))
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
