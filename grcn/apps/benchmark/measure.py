"""Times a detector on made-up images beside its arithmetic floor and torchvision's Faster R-CNN, in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from grcn import build
from grcn.apps.benchmark.counts import count, saved_bytes
from grcn.apps.benchmark.data import data_wait_ms
from grcn.apps.benchmark.describe import image_size
from grcn.apps.benchmark.floor import record_floor
from grcn.apps.benchmark.parts import breakdown, busy_ms, wait
from grcn.apps.benchmark.scene import OBJECTS, Scene, make_scene, spread_scores
from grcn.config.schema import Config, TrainConfig
from grcn.engine.step import peak_mb, training_step
from grcn.models.detector import Detector
from grcn.models.memory_format import to_device
from grcn.progress import progress_bar
from grcn.torchvision_baseline import baseline_of, torchvision_detector, torchvision_lacks

Variants = dict[str, Callable[[], object]]


def measure(
    cfg: Config,
    device: torch.device,
    repeats: int,
    images: int = 1,
    objects: int = OBJECTS,
    compare: bool = True,
) -> dict[str, Any]:
    """Times training steps and detections of images of random pixels with random objects.

    The weights are random: no file is read. Scores are spread, so that both passes of the head have the work of a
    trained model. Everything is run once before it is timed, then all in turn, ``repeats`` times. Images are as large
    as the config's get; their number is ``images``, whatever ``train.batch`` says.

    Args:
        compare: time the floor (:mod:`grcn.apps.benchmark.floor`) and torchvision too, and of a model whose tasks are
            separate its baseline (:func:`grcn.torchvision_baseline.baseline_of`).

    Returns:
        ``step_ms`` and ``infer_ms``, medians; with ``compare`` also ``floor_ms``, ``torchvision_ms``,
        ``infer_floor_ms``, ``infer_torchvision_ms`` and ``ratio_to_floor``, ``ratio_to_torchvision``,
        ``infer_ratio_to_floor``, ``infer_ratio_to_torchvision``, medians of the rounds' ratios; the same with
        ``baseline`` if there is one. ``times_ms`` and ``ratios`` hold all of them, by the same names.
        ``not_compared``: why there is nothing of torchvision's, empty if there is. ``breakdown_ms``: parts of a step.
        ``counts``: operators, waits for a GPU and uploads to it, of a step and a detection, and of torchvision's.
        ``data_wait_ms``: what a step waits for its images. ``saved_mb``: kept for the backward pass. ``losses`` of the
        first step; ``localized_rois``, which the localization pass of a detection ran on; ``peak_mb``, the most memory
        that this model's steps and detections take of a GPU; on a CPU the most that the process ever took, imports
        included.
    """
    work = prepare(cfg, device, images, objects)
    model = work.model
    with _rows_of(model.roi_heads.stages()[-1].heads.bbox_pred) as localized:
        work.infer()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "amp": cfg.run.amp,
        "images": images,
        "losses": work.losses,
        "localized_rois": localized[0] // images,
        "breakdown_ms": breakdown(model, work.step, device),
        "saved_mb": saved_bytes(model, work.forward) / 1e6,
        "data_wait_ms": data_wait_ms(cfg, work.step, images, repeats),
        "counts": {"step": count(work.step), "infer": count(work.infer)},
        "peak_mb": peak_mb(device),
    }
    if device.type == "cuda":
        found |= {"busy_ms": busy_ms(work.step), "infer_busy_ms": busy_ms(work.infer)}
    variants: Variants = {"step": work.step, "infer": work.infer}
    if compare:
        variants |= {"floor": record_floor(work.step), "infer_floor": record_floor(work.infer)}
        baseline = baseline_of(cfg.model)
        if baseline != cfg.model:
            plain = prepare(cfg.model_copy(update={"model": baseline}), device, images, objects)
            variants |= {"baseline": plain.step, "infer_baseline": plain.infer}
        # What makes torchvision's another detector may make it another amount of work.
        found["not_compared"] = torchvision_lacks(cfg.model)
    if compare and not found["not_compared"]:
        baseline_model = torchvision_detector(cfg.model, model).to(device)
        # What torch chooses on a GPU is counted, what it chooses on this device is timed.
        for foreach in (True, None):
            optimizer = _torchvisions_optimizer(cfg.train, baseline_model, foreach)
            theirs = _work(baseline_model, optimizer, *work.scene, work.amp)
            variants |= dict(zip(("torchvision", "infer_torchvision"), theirs, strict=True))
            for name in ("torchvision", "infer_torchvision"):
                variants[name]()
                found["counts"].setdefault(name, count(variants[name]))
    times = interleaved(variants, repeats, device)
    found["times_ms"] = times
    found |= {f"{name}_ms": statistics.median(values) for name, values in times.items()}
    found["ratios"] = _ratios(times)
    return found | {name: statistics.median(values) for name, values in found["ratios"].items()}


class Work(NamedTuple):
    """A detector, and what does a training step, a forward pass in training and a detection, all run before."""

    model: Detector
    scene: Scene
    amp: torch.autocast
    step: Callable[[], dict[str, Tensor]]
    forward: Callable[[], object]
    infer: Callable[[], object]
    losses: dict[str, float]


def prepare(
    cfg: Config, device: torch.device, images: int = 1, objects: int = OBJECTS, classes: int | None = None
) -> Work:
    """Builds a detector with random weights and spread scores, and does a step and a detection with it.

    Args:
        images, objects: of the made-up batch, and in each of its images.
        classes: without background; None: those that data of this format usually have.
    """
    classes = len(build.usual_classes(cfg.data)) if classes is None else classes
    model = to_device(build.build_model(cfg.model, classes + 1, cfg.run.seed), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    scene = make_scene(image_size(cfg), classes, device, images, objects, cfg.run.seed)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=cfg.run.amp == "bf16")
    # Steps of full size on noise would soon leave the finite numbers.
    optimizer = _without_learning(build.build_optimizer(cfg.train, model))
    step, infer = _work(model, optimizer, *scene, amp)
    losses = {name: value.item() for name, value in step().items()}
    with amp:
        spread_scores(model, scene[0])

    def forward() -> object:
        with amp:
            return model.train()(*scene)

    return Work(model, scene, amp, step, forward, infer, losses)


def _work(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: list[Tensor],
    targets: list[dict[str, Any]],
    amp: torch.autocast,
) -> tuple[Callable[[], dict[str, Tensor]], Callable[[], object]]:
    """Returns what does a training step, and what does a detection."""

    def step() -> dict[str, Tensor]:
        return training_step(model, optimizer, images, targets, amp)

    @torch.no_grad()
    def infer() -> object:
        model.eval()
        with amp:
            return model(images)

    return step, infer


def _torchvisions_optimizer(cfg: TrainConfig, baseline_model: nn.Module, foreach: bool | None) -> torch.optim.Optimizer:
    trained = [weight for weight in baseline_model.parameters() if weight.requires_grad]
    common: dict[str, Any] = {"lr": cfg.lr, "weight_decay": cfg.weight_decay, "foreach": foreach}
    if cfg.optimizer == "adamw":
        return _without_learning(torch.optim.AdamW(trained, betas=cfg.betas, **common))
    return _without_learning(torch.optim.SGD(trained, momentum=cfg.momentum, **common))


def _without_learning(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    return optimizer


@contextmanager
def _rows_of(layer: nn.Module) -> Iterator[list[int]]:
    """Notes how many rows a layer is given at each call."""
    rows: list[int] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    yield rows
    hook.remove()


def interleaved(variants: Variants, repeats: int, device: torch.device) -> dict[str, list[float]]:
    """Runs all variants in turn, ``repeats`` times; returns the milliseconds of each. They have run before."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    with progress_bar(desc="benchmark", total=repeats * len(variants), leave=False) as bar:
        for _ in range(repeats):
            for name, variant in variants.items():
                wait(device)
                start = time.perf_counter()
                variant()
                wait(device)
                times[name].append(1000 * (time.perf_counter() - start))
                bar.update()
    return times


def _ratios(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """Divides the times of each round by those of the floor, torchvision and the baseline in that round."""
    return {
        f"{prefix}ratio_to_{other}": [a / b for a, b in zip(times[ours], times[prefix + other], strict=True)]
        for ours, prefix in (("step", ""), ("infer", "infer_"))
        for other in ("floor", "torchvision", "baseline")
        if prefix + other in times
    }
