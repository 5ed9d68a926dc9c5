"""Times a detector on made-up images beside its arithmetic floor and torchvision's Faster R-CNN, in turn."""

from __future__ import annotations

import statistics
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
from grcn.apps.benchmark.parts import breakdown, busy_ms
from grcn.apps.benchmark.rounds import Variants, interleaved, ratios
from grcn.apps.benchmark.scene import OBJECTS, Scene, make_scene, spread_scores
from grcn.config.schema import Config, TrainConfig
from grcn.engine.environment import device_name, instruction_sets
from grcn.engine.step import peak_mb, training_step
from grcn.errors import EnvironmentFault, one_line
from grcn.models.compiled import compile_parts
from grcn.models.detector import Detector
from grcn.models.memory_format import to_device
from grcn.torchvision_baseline import baseline_of, torchvision_detector, torchvision_lacks


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
    trained model. Everything runs once before it is timed, then all in turn, ``repeats`` times. Images have the largest
    size of the config; their number is ``images``, whatever ``train.batch`` is.

    Args:
        compare: time the floor (:mod:`grcn.apps.benchmark.floor`) and torchvision too; the baseline of a model whose
            tasks are separate (:func:`grcn.torchvision_baseline.baseline_of`); and with ``run.compile`` the compiled
            model: the others run eagerly.

    Returns:
        ``step_ms`` and ``infer_ms``, medians; with ``compare`` also ``floor_ms``, ``torchvision_ms``,
        ``infer_floor_ms``, ``infer_torchvision_ms`` and ``ratio_to_floor``, ``ratio_to_torchvision``,
        ``infer_ratio_to_floor``, ``infer_ratio_to_torchvision``, medians of the rounds' ratios; the same with
        ``baseline`` and ``compiled`` if there are such. ``times_ms`` and ``ratios`` hold all of them, by the same
        names, and ``cpu_ms`` and ``cpu_ratios`` the same of CPU seconds over all threads.
        ``not_compared``: why something is missing, empty if nothing is. ``breakdown_ms``: parts of a step.
        ``counts``: operators, synchronizations with a GPU and uploads to it, of a step and a detection, and of
        torchvision's. ``data_wait_ms``: how long a step waits for its images. ``saved_mb``: kept for the backward pass.
        ``losses`` of the first step; ``localized_rois``, which the localization pass of a detection ran on;
        ``peak_mb``, the peak GPU memory of this model's steps and detections; on a CPU the peak memory of the whole
        process, imports included.
    """
    work = prepare(cfg, device, images, objects)
    model = work.model
    with _rows_of(model.roi_heads.stages()[-1].heads.bbox_pred) as localized:
        work.infer()
    found: dict[str, Any] = {
        "device": device_name(device),
        "instruction_sets": instruction_sets(),
        "threads": torch.get_num_threads(),
        "amp": cfg.run.amp,
        "images": images,
        "losses": work.losses,
        "localized_rois": localized[0] // images,
        "breakdown_ms": breakdown(model, work.step, device),
        "saved_mb": saved_bytes(model, work.forward) / 1e6,
        "data_wait_ms": data_wait_ms(cfg, work.step, images, min(repeats, 3)),
        "counts": {"step": count(work.step), "infer": count(work.infer)},
        "peak_mb": peak_mb(device),
    }
    if device.type == "cuda":
        found |= {"busy_ms": busy_ms(work.step), "infer_busy_ms": busy_ms(work.infer)}
    variants: Variants = {"step": work.step, "infer": work.infer}
    missing: list[str] = []
    if compare:
        variants |= {"floor": record_floor(work.step, device), "infer_floor": record_floor(work.infer, device)}
        if (baseline := baseline_of(cfg.model)) != cfg.model:
            plain = prepare(cfg.model_copy(update={"model": baseline}), device, images, objects)
            variants |= {"baseline": plain.step, "infer_baseline": plain.infer}
        if cfg.run.compile != "none":
            compiled = prepare(cfg, device, images, objects)
            compile_parts(compiled.model, cfg.run.compile)
            added: Variants = {"compiled": compiled.step, "infer_compiled": compiled.infer}
            missing += add_what_runs(variants, added, "compiled")
        missing += add_torchvision(variants, found["counts"], cfg, work, device)
    found["not_compared"] = missing
    wall, cpu = interleaved(variants, repeats, device)
    found |= {"times_ms": wall, "ratios": ratios(wall), "cpu_ms": cpu, "cpu_ratios": ratios(cpu)}
    medians = {f"{name}_ms": statistics.median(values) for name, values in wall.items()}
    return found | medians | {name: statistics.median(values) for name, values in found["ratios"].items()}


def add_torchvision(
    variants: Variants, counts: dict[str, dict[str, int]] | None, cfg: Config, work: Work, device: torch.device
) -> list[str]:
    """Adds torchvision's detector, and its counts to ``counts``; where there is none, or it does not run, returns
    why."""
    # Differences that make torchvision's another detector may also change the amount of work.
    if lacks := torchvision_lacks(cfg.model):
        return [f"torchvision: {line}" for line in lacks]
    theirs = torchvision_detector(cfg.model, work.model).to(device)
    # The optimizer that torch chooses on a GPU is counted, the one that it chooses on this device is timed.
    for foreach in (None,) if counts is None else (True, None):
        optimizer = _torchvisions_optimizer(cfg.train, theirs, foreach)
        step, infer = _work(theirs, optimizer, *work.scene, work.amp)
        added: Variants = {"torchvision": step, "infer_torchvision": infer}
        if missing := add_what_runs(variants, added, "torchvision"):
            return missing
        if foreach and counts is not None:
            counts.update({name: count(variant) for name, variant in added.items()})
    return []


def add_what_runs(variants: Variants, added: Variants, name: str) -> list[str]:
    """Runs each once and adds all; or adds none and returns why, as an operator that the device lacks."""
    try:
        for variant in added.values():
            variant()
    except (RuntimeError, EnvironmentFault) as error:
        return [f"{name}: not available ({one_line(str(error), 150)})"]
    variants |= added
    return []


class Work(NamedTuple):
    """A detector, and functions for a training step, a forward pass in training and a detection, each run before."""

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
        images, objects: numbers of images in the made-up batch, and of objects in each.
        classes: without background; None: those that data of this format usually have.
    """
    classes = len(build.usual_classes(cfg.data)) if classes is None else classes
    model = to_device(build.build_model(cfg.model, classes + 1, cfg.run.seed), device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    scene = make_scene(image_size(cfg), classes, device, images, objects, cfg.run.seed)
    amp = torch.autocast(device.type, torch.bfloat16, enabled=cfg.run.amp == "bf16")
    # On noise, full-size steps would soon diverge to infinity.
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
    """Returns a function that does a training step, and one that does a detection."""

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
    """Records how many rows a layer gets at each call."""
    rows: list[int] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    yield rows
    hook.remove()
