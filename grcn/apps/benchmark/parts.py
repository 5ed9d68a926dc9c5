"""Breaks down the time of a step: the parts of its forward pass, the rest, and how long a GPU is busy."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from grcn.models.detector import Detector


def breakdown(model: Detector, step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Times the forward pass of each part in one step, and the rest of the step; synchronizes the device around each.

    Returns:
        Milliseconds by part. The RPN contains its layers, the RoI heads their pooling and context.
    """
    heads = model.roi_heads
    parts: dict[str, list[nn.Module]] = {
        "transform": [model.transform],
        "backbone": [model.backbone],
        "RPN": [model.rpn],
        "RPN layers": [model.rpn.conv, model.rpn.cls_logits, model.rpn.bbox_pred],
        "RoI heads": [heads],
        "RoI pooling": [pool for stage in heads.stages() for pool in stage.pools.values()],
        "context": [context for stage in heads.stages() for context in stage.context.values()],
        "forward": [model],
    }
    spent = dict.fromkeys(parts, 0.0)
    starts: list[float] = []
    hooks = []

    def now() -> float:
        wait(device)
        return 1000 * time.perf_counter()

    def stop(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            spent[name] += now() - starts.pop()

        return hook

    for name, modules in parts.items():
        for module in modules:
            hooks.append(module.register_forward_pre_hook(lambda *_: starts.append(now())))
            hooks.append(module.register_forward_hook(stop(name)))
    begin = now()
    step()
    whole = now() - begin
    for handle in hooks:
        handle.remove()
    forward = spent.pop("forward")
    return {name: value for name, value in spent.items() if value} | {"backward and update": whole - forward}


def busy_ms(work: Callable[[], object], times: int = 5) -> float:
    """Returns for how many milliseconds a GPU computes at each call of ``work``; otherwise it waits for its host."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(times):
            work()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profiler.key_averages()) / 1000 / times


def timed(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Runs ``work`` once; returns its wall-clock seconds and its CPU seconds over all threads of the process."""
    wait(device)
    start, start_cpu = time.perf_counter(), time.process_time()
    work()
    wait(device)
    return time.perf_counter() - start, time.process_time() - start_cpu


def wait(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
