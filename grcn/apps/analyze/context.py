"""Measures the context attention of a detector: how much it adds, where it looks, and how much that varies.

Shapes: ``R`` RoIs of an image, ``C`` channels, ``s x s`` cells of a RoI, ``t x t`` cells of the pooled image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from grcn import boxes
from grcn.models.context import ContextAttention
from grcn.models.detector import Detector
from grcn.models.transform import as_tensor

FIGURES = ("size", "largest_share", "entropy", "between_rois")


@torch.inference_mode()
def measure_context(model: Detector, images: Iterable[Tensor]) -> dict[str, dict[str, Any]]:
    """Measures the attention of a detector over images.

    Args:
        model: is left in evaluation mode; of a cascade the first stage is measured.
        images: each ``[3, h, w]``, uint8 or float in 0-1, on the model's device.

    Returns:
        for each task with context:
        ``images``: a dict for each image that has a proposal, with ``rois``, their number, and these means over them:
        ``size``, the norm of the added context divided by that of the RoI's features; ``largest_share``, of the most
        attended cell, times the cells: 1 is even, ``t * t`` all on one; ``entropy`` of the attention divided by that of
        an even one; ``between_rois``, the difference of the context between the RoIs of the image: the root mean
        square distance from its mean, divided by the mean's norm; None where nothing is added.
        ``mean``: of these over the images; None where there is none.
        ``between_images``: the same distance, between the means of the images; None for fewer than two.
        ``cells``: ``t * t``.
    """
    model.eval()
    heads = model.roi_heads
    rows: dict[str, list[dict[str, float | None]]] = {task: [] for task in heads.context}
    means: dict[str, list[Tensor]] = {task: [] for task in heads.context}
    cells = {task: heads.context_pools[task].size ** 2 for task in heads.context}
    for image in images:
        batch, _ = model.transform([image])
        features = model.backbone(batch.tensors)
        proposals, _ = model.rpn(batch, features)
        rois = proposals[:, boxes.areas(proposals[0]) > 0]
        if not rois.shape[1]:
            continue
        for task, context in heads.context.items():
            pooled = heads.pools[task](features[task], rois)
            whole = heads.context_pools[task].whole(features[task], as_tensor(batch.image_sizes, rois))
            row, mean = _figures(context, pooled, whole)
            rows[task].append(row)
            means[task].append(mean)
    return {
        task: {
            "images": found,
            "mean": {name: _mean([row[name] for row in found]) for name in FIGURES},
            "between_images": _spread(torch.stack(means[task])) if len(found) > 1 else None,
            "cells": cells[task],
        }
        for task, found in rows.items()
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _figures(context: ContextAttention, pooled: Tensor, whole: Tensor) -> tuple[dict[str, float | None], Tensor]:
    """Measures the RoIs ``[R, C, s, s]`` of an image ``[1, C, t, t]`` and returns the mean context ``[C]``."""
    added = context(pooled, whole) - pooled
    attention = context.attention(pooled, whole)
    count = attention.shape[-1]
    entropy = torch.special.entr(attention).sum(-1).mean().item()
    vectors = added.mean((2, 3))
    row: dict[str, float | None] = {
        "rois": len(pooled),
        "size": (added.flatten(1).norm(dim=1) / pooled.flatten(1).norm(dim=1).clamp(min=1e-12)).mean().item(),
        "largest_share": attention.amax(-1).mean().item() * count,
        "entropy": entropy / math.log(count) if count > 1 else 1.0,
        "between_rois": _spread(vectors),
    }
    return row, vectors.mean(0)


def _spread(vectors: Tensor) -> float | None:
    """Returns the root mean square distance of vectors ``[n, C]`` from their mean, divided by its norm."""
    mean = vectors.mean(0)
    distance = (vectors - mean).square().sum(1).mean().sqrt()
    return (distance / mean.norm()).item() if mean.norm() > 0 else None
