"""Training loop, driven by ``step``, the number of updates done and its only clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from grcn import rng
from grcn.engine import distributed
from grcn.engine.average import WeightAverage
from grcn.engine.evaluate import move_images, move_targets
from grcn.engine.log import logger
from grcn.engine.recorder import Metrics, Recorder
from grcn.engine.signals import Stopped, StopSignals
from grcn.errors import CheckpointError
from grcn.progress import progress_bar

Batch = tuple[Sequence[Tensor], Sequence[Mapping[str, Any]]]


def train(
    model: nn.Module,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    recorder: Recorder,
    *,
    steps: int,
    lr_at: Callable[[int], float],
    seed: int = 0,
    accumulate: int = 1,
    amp: torch.dtype | None = None,
    clip_grad_norm: float | None = None,
    checkpoint_every: int = 1000,
    evaluate: Callable[[int], Mapping[str, float | None]] | None = None,
    eval_every: int = 0,
    ema: WeightAverage | None = None,
    stop: StopSignals | None = None,
) -> Metrics:
    """Trains a detector up to ``steps`` updates, and returns its last evaluation.

    A run that was killed and continued from its newest checkpoint ends with the same bytes as one
    that never stopped, as far as the device computes deterministically. Under torchrun every
    process calls this with its share of the batches.

    Args:
        model: on its device; in training mode ``model(images, targets)`` returns a dict of scalar
            losses, whose sum is minimised. torchvision's detectors are such models.
        batches: of images, uint8 or float ``[3, H, W]``, and their targets: ``accumulate`` per
            update, positioned at the step to continue from. Tensors in targets are moved to the
            device, other entries passed on.
        optimizer: any of torch's built with ``fused=True``: the fused ones can skip an update
            without a host-device synchronisation.
        recorder: writes the log and the checkpoints, and holds the checkpoint to continue from; not entered yet.
        lr_at: learning rate of update ``step`` (from 0), times ``lr_factor`` in parameter groups
            that have one.
        seed: of torch's global generator, set at each step for models that draw from it.
        amp: ``torch.bfloat16`` for autocast.
        clip_grad_norm: maximum norm of the whole gradient.
        checkpoint_every: steps between checkpoints; there is one before each evaluation as well. They are written
            while training continues; evaluations, the next checkpoint and the end wait for them.
        evaluate: called with the step every ``eval_every`` steps (0: never) and after the last, by
            all processes; returns metrics. It may leave the model in evaluation mode.
        ema: an average of the model's weights, to update and save; ``evaluate`` finds it in ``ema.module``.
        stop: signals that stop training: the step in progress is finished and saved.

    Raises:
        EnvironmentFault: a checkpoint could not be written; raised by the call that waits for it.
        RuntimeError: torchrun started several processes, and this one has not joined the others.
        ValueError: the optimizer is not fused; the batches end before the steps; a trained weight has no gradient.
        CheckpointError: the checkpoint to continue from is past ``steps``, or does not fit the model or optimizer.
        NonFiniteError: a loss or gradient was not finite. The weights, and their average, are those
            before that step, in all processes.
        Stopped: a signal came to one of the processes; the checkpoint is saved.
    """
    distributed.check_joined()
    if not all(group.get("fused") for group in optimizer.param_groups):
        raise ValueError("this optimizer cannot skip a non-finite update; build it with fused=True")
    start, device = recorder.step, next(model.parameters()).device
    if start > steps:
        raise CheckpointError(f"checkpoint of step {start}: past the end (got steps = {steps}); raise train.steps")
    recorder.restore(model, optimizer, ema)
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad]
    replica = distributed.wrap(model).train()
    failed = torch.zeros((), device=device)  # 1 from the first non-finite step on: no more updates

    def is_evaluated(step: int) -> bool:
        return evaluate is not None and (step == steps or eval_every > 0 and step % eval_every == 0)

    def evaluation(step: int) -> Metrics:
        if evaluate is None:
            return {}
        metrics = recorder.evaluation(step, evaluate)
        replica.train()
        return metrics

    bar = progress_bar(desc="train", total=steps, initial=start, disable=not distributed.is_main())
    with recorder, bar:
        if 0 < start < steps and is_evaluated(start):
            evaluation(start)  # an interrupted run may have got this far
        for step in range(start + 1, steps + 1):
            lr = _set_lr(optimizer, lr_at(step - 1))
            _seed(device, rng.hash_int(seed, rng.STEP, step, distributed.rank()))
            names, values, image_ids = _backward(replica, batches, accumulate, device, amp)
            norm = get_total_norm(_gradients(weights, model))
            if clip_grad_norm is not None:
                clip_grads_with_norm_(weights, clip_grad_norm, norm)
            row = recorder.losses.add(names, values, norm, image_ids)
            failed = torch.maximum(failed, (~row.isfinite()).any().to(failed))
            _update(optimizer, failed)
            if ema is not None:
                ema.update(model, failed)
            bar.update()

            # First, since it detects a process that has exited; a device synchronisation would not.
            code = distributed.maximum(0 if stop is None else stop.code)
            if step % recorder.log_every == 0 or step == steps:
                averages = recorder.log(step, lr)
                bar.set_postfix({name: f"{value:.3g}" for name, value in averages.items()}, refresh=False)
            if code or step % checkpoint_every == 0 or step == steps or is_evaluated(step):
                recorder.save(step, model, optimizer, ema)
            if code:
                recorder.finish_saving()
                logger.info("stopped by a signal; step %d is saved, run again with --resume", step)
                raise Stopped(code)
            if is_evaluated(step) and step < steps:
                evaluation(step)
                distributed.raise_if_stopped(stop)
        return evaluation(steps)


def learning_rate(
    step: int,
    *,
    lr: float,
    steps: int,
    schedule: Literal["step", "cosine"] = "step",
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    warmup: int = 0,
    warmup_factor: float = 0.001,
) -> float:
    """Returns the learning rate of update ``step``, counted from 0. There is no state to save.

    Args:
        lr: the peak rate.
        schedule: ``step`` multiplies it by ``gamma`` at each milestone (those past the end do
            nothing); ``cosine`` takes it along half a cosine to zero at ``steps``.
        warmup: updates over which the rate rises linearly from ``warmup_factor`` times itself, on
            top of the schedule.

    Raises:
        ValueError: an unknown schedule.
    """
    if schedule == "cosine":
        lr *= 0.5 * (1 + math.cos(math.pi * step / steps))
    elif schedule == "step":
        lr *= gamma ** sum(step >= milestone for milestone in milestones)
    else:
        raise ValueError(f"unknown schedule {schedule!r}; choose step or cosine")
    if step < warmup:
        lr *= warmup_factor + (1 - warmup_factor) * step / warmup
    return lr


def _backward(
    replica: nn.Module,
    batches: Iterator[Batch],
    accumulate: int,
    device: torch.device,
    amp: torch.dtype | None,
) -> tuple[list[str], Tensor, list[object]]:
    """Computes the gradient of a step; returns its losses' names, values ``[L]`` and image ids."""
    total: Tensor | float = 0.0
    image_ids: list[object] = []
    for index in range(accumulate):
        batch = next(batches, None)
        if batch is None:
            raise ValueError("the batches ended before the steps; pass an endless iterator")
        images = move_images(batch[0], device)
        targets = move_targets(batch[1], device)
        image_ids += [target.get("image_id") for target in batch[1]]
        with _gradients_kept_here(replica, index < accumulate - 1):
            with torch.autocast(device.type, amp, enabled=amp is not None):
                losses = replica(images, targets)
            values = torch.stack(list(losses.values())) / accumulate
            values.sum().backward()
        total = values.detach() + total
    assert isinstance(total, Tensor)
    return list(losses), total, image_ids


def _gradients(weights: list[nn.Parameter], model: nn.Module) -> list[Tensor]:
    """Returns all gradients; checked, since a missing one would make fused SGD and DDP fail obscurely."""
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    if len(gradients) < len(weights):
        missing = {weight for weight in weights if weight.grad is None}
        names = [name for name, weight in model.named_parameters() if weight in missing]
        raise ValueError(
            f"{len(missing)} trained weights have no gradient (first: {', '.join(names[:3])}); "
            "the losses must depend on all, times zero if need be; freeze those that are not used"
        )
    return gradients


def _seed(device: torch.device, seed: int) -> None:
    """Seeds the global generators that a step may draw from; torch.manual_seed would take 1 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def _gradients_kept_here(replica: nn.Module, enabled: bool) -> AbstractContextManager[None]:
    """Defers the averaging over processes to the last micro-batch."""
    if enabled and isinstance(replica, DistributedDataParallel):
        return replica.no_sync()
    return nullcontext()


def _set_lr(optimizer: torch.optim.Optimizer, lr: float) -> float:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)
    return lr


def _update(optimizer: torch.optim.Optimizer, skip: Tensor) -> None:
    """Does an update unless ``skip`` is 1, which only the device reads, as for a GradScaler."""
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]
    optimizer.zero_grad(set_to_none=True)
