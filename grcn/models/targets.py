"""Checks the targets that training reads, and the losses that replaced functions make of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grcn.boxes import sync_is_free


def check_targets(targets: Sequence[Mapping[str, Any]], images: int) -> None:
    """Makes sure that targets fit the images and each other.

    Boxes may be of integers or of double precision: the model computes with them in its own type.

    Types, shapes and lengths are checked on every device. Values are checked on a CPU only: on a GPU reading one is a
    host-device synchronisation.

    Args:
        targets: one dict per image: ``boxes`` ``[N, 4]``, absolute xyxy, and ``labels`` int64 ``[N]`` in 1..C; an image
            without objects has ``boxes`` ``[0, 4]`` and ``labels`` ``[0]``.
        images: how many images there are.

    Raises:
        TypeError: a target is not a dict, ``boxes`` not a tensor of numbers, or ``labels`` not one of int64.
        ValueError: targets are not a list, or are more or fewer than the images; a target lacks ``boxes`` or
            ``labels``, or they have another shape or length; a box is not finite or has no extent.
    """
    if isinstance(targets, Mapping) or not isinstance(targets, Sequence):
        raise ValueError(f"targets must be a list of one dict per image (got {type(targets).__name__})")
    if len(targets) != images:
        raise ValueError(f"expected one target per image (got {len(targets)} targets, {images} images)")
    for index, target in enumerate(targets):
        where = f"target {index}:"
        if not isinstance(target, Mapping):
            raise TypeError(f"{where} must be a dict of boxes and labels (got {type(target).__name__})")
        if missing := {"boxes", "labels"} - target.keys():
            raise ValueError(f"{where} must have boxes and labels (no {' and no '.join(sorted(missing))})")
        found, labels = target["boxes"], target["labels"]
        if not isinstance(found, Tensor) or found.dtype == torch.bool or found.is_complex():
            raise TypeError(f"{where} boxes must be a tensor, float [N, 4] (got {_type(found)})")
        if found.dim() != 2 or found.shape[1] != 4:
            raise ValueError(f"{where} boxes must be float [N, 4] (got {list(found.shape)})")
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            raise TypeError(f"{where} labels must be a tensor, int64 [N] (got {_type(labels)})")
        if labels.shape != found.shape[:1]:
            raise ValueError(
                f"{where} labels must be int64 [N], N = {len(found)} like boxes (got {list(labels.shape)})"
            )
        if sync_is_free(found):
            _check_boxes(where, found)


def check_labels(targets: Sequence[Mapping[str, Tensor]], num_classes: int) -> None:
    """Makes sure that the labels of targets are classes; on a CPU only, as :func:`check_targets`.

    Args:
        targets: of each image, with ``labels`` int64 ``[N]``.
        num_classes: ``C + 1``, background included.

    Raises:
        ValueError: a label is not in 1..C.
    """
    for index, target in enumerate(targets):
        labels = target["labels"]
        if sync_is_free(labels) and not ((labels > 0) & (labels < num_classes)).all():
            raise ValueError(
                f"target {index}: labels {labels.tolist()[:9]} must be 1 to {num_classes - 1}; 0 is background"
            )


def check_loss(name: str, loss: Tensor, labels: Tensor) -> None:
    """Makes sure that a loss has a value for each RoI, as ``labels`` has.

    Raises:
        ValueError: it has another shape, as after a reduction.
    """
    if loss.shape != labels.shape:
        got, expected = list(loss.shape), list(labels.shape)
        raise ValueError(f"roi_heads.{name}: expected the loss of each RoI, {expected} (got {got}); do not reduce it")


def _type(value: object) -> str:
    if isinstance(value, Tensor):
        return str(value.dtype).removeprefix("torch.")
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _check_boxes(where: str, found: Tensor) -> None:
    # An infinite box would crash the process in torchvision's pooling.
    found = found.double()  # not every type of integers can be compared
    valid = (found[:, 2:] > found[:, :2]).all(1) & found.isfinite().all(1)
    if not valid.all():
        worst = int(valid.logical_not().nonzero()[0])
        raise ValueError(f"{where} box {worst} {found[worst].tolist()} has no extent or is not finite")
