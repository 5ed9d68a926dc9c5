"""Runs a detector over a data set and packs its detections into arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from grcn.engine import distributed
from grcn.engine.signals import StopSignals
from grcn.errors import NonFiniteError
from grcn.progress import progress_bar


def detect(
    model: nn.Module,
    batches: Iterable[tuple[Sequence[int], Sequence[Tensor]]],
    device: torch.device,
    *,
    total: int | None = None,
    amp: torch.dtype | None = None,
    stop: StopSignals | None = None,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Detects objects in all images; every process returns the detections of all.

    The model is left in evaluation mode. Nothing random is drawn.

    Args:
        model: returns, for a list of images, one dict of ``boxes`` ``[n, 4]``, ``labels`` and
            ``scores`` per image, boxes in pixels of the image as given.
        batches: this process's share: table rows and their images, uint8 or float ``[3, H, W]``.
        total: batches in this share, for the progress bar.
        amp: ``torch.bfloat16`` for autocast.

    Returns:
        ``rows`` int64 ``[K]``, ``boxes`` float32 ``[K, 4]`` absolute xyxy, ``scores`` float32
        ``[K]``, ``labels`` int64 ``[K]``, ordered by row and within one as the model returned them.

    Raises:
        NonFiniteError: the weights are not finite, or boxes or scores that the model returns: metrics
            would be meaningless. Weights that are finite, but so large that scores are NaN, go
            undetected if the model drops such scores, as ours does: no NaN passes its threshold,
            and there are no detections.
        Stopped: a signal came to one of the processes.
    """
    model.eval()
    if not are_finite(model.parameters()):
        raise NonFiniteError("the detector's weights are not finite; use an earlier checkpoint")
    rows: list[int] = []
    outputs: list[dict[str, Tensor]] = []
    show = progress and distributed.is_main()
    bar = progress_bar(batches, "evaluate", total, disable=not show, leave=False)
    # One context for all images, since autocast caches the cast weights of linear layers until it exits.
    with torch.no_grad(), torch.autocast(device.type, amp, enabled=amp is not None), bar:
        for batch_rows, images in bar:
            outputs += model(move_images(images, device))
            rows += batch_rows
            if stop is not None and stop.code:
                break
    distributed.raise_if_stopped(stop)
    shares = distributed.gather(_pack(rows, outputs))
    packed = {key: np.concatenate([share[key] for share in shares]) for key in shares[0]}
    if not (np.isfinite(packed["boxes"]).all() and np.isfinite(packed["scores"]).all()):
        raise NonFiniteError("detected boxes or scores are not finite; use an earlier checkpoint")
    order = np.argsort(packed["rows"], kind="stable")
    return {key: values[order] for key, values in packed.items()}


def are_finite(weights: Iterable[Tensor]) -> bool:
    """Returns whether all weights are finite; one host-device synchronisation."""
    return bool(torch.stack([weight.detach().isfinite().all() for weight in weights]).all())


def move_images(images: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Moves images to the device, where uint8 becomes float in 0-1."""
    moved = [image.to(device, non_blocking=True) for image in images]
    return [image.float().div_(255) if image.dtype == torch.uint8 else image for image in moved]


def move_targets(targets: Sequence[Mapping[str, Any]], device: torch.device) -> list[dict[str, Any]]:
    """Moves the tensors of targets to the device; other entries are passed on."""
    return [
        {
            key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for key, value in target.items()
        }
        for target in targets
    ]


def _pack(rows: list[int], outputs: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Joins the outputs on their device and copies each field to the host once."""
    counts = [len(output["scores"]) for output in outputs]
    packed = {"rows": np.repeat(np.asarray(rows, np.int64), counts)}
    for key, dtype, shape in _FIELDS:
        fields = [output[key] for output in outputs] or [torch.empty(shape)]
        packed[key] = torch.cat(fields).to("cpu", dtype).numpy()
    return packed


_FIELDS = (
    ("boxes", torch.float32, (0, 4)),
    ("scores", torch.float32, (0,)),
    ("labels", torch.int64, (0,)),
)
