"""Explains in one line why average precision is near zero: the usual causes, the simplest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from grcn.data.annotations import Annotations
from grcn.evaluation import voc
from grcn.evaluation.detections import Detections, check

# An AP50 below this points to a fault, or to a model that is hardly trained.
_NEAR_ZERO = 0.05


def diagnose(table: Annotations, detections: Mapping[str, Any], metrics: Mapping[str, float | None]) -> str | None:
    """Names the likely cause of an average precision near zero.

    Args:
        table: the annotations that were scored against.
        detections: the packed detections that were scored.
        metrics: the ``metrics`` of :func:`grcn.evaluation.voc.evaluate`, of
            :func:`grcn.evaluation.coco.evaluate`, or of both in one dict.

    Returns:
        One line of at most 300 characters, or None where AP50 reaches 0.05: COCO's or, without it, VOC's under the
        whole curve; where neither was computed, where any precision does.

    Raises:
        DataError: as the evaluators.
    """
    found = check(table, detections)
    if (table.difficult | table.iscrowd).all():
        return (
            f"AP is undefined: none of the {len(table.boxes)} objects of {table.name} has to be "
            "found, all are difficult or crowd"
        )
    precisions = {name: value for name, value in metrics.items() if "_ap" in name and value is not None}
    deciding = next((precisions[name] for name in ("coco_ap50", "voc_area_ap50") if name in precisions), None)
    if (max(precisions.values(), default=0.0) if deciding is None else deciding) >= _NEAR_ZERO:
        return None
    if not len(found.rows):
        return (
            "AP is 0: there are no detections; the model is untrained, the score threshold is above all its scores, or "
            "it has diverged so far that its scores are not finite"
        )
    cause = _wrong_frame(table, found) or _wrong_classes(table, found) or _weak(table, found)
    return f"AP is about 0: {cause}"


def _wrong_frame(table: Annotations, found: Detections) -> str | None:
    """Looks for boxes in other units, or in another frame than that of the original image."""
    if found.boxes.max() <= 2:
        return "all box coordinates are at most 2; boxes seem to be fractions of the image, pixels are expected"
    limits = table.sizes[found.rows][:, ::-1].astype(np.float64)
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    outside = ((high > limits + 1) | (low < -1)).any(axis=1)
    if outside.mean() <= 0.25:
        return None
    reach = np.median((high / limits).max(axis=1)[outside])
    return (
        f"{outside.mean():.0%} of the boxes leave their image (the typical one reaches to "
        f"{reach:.1f} of its size); they seem to be in the frame of the resized image, or to be x, "
        "y, width, height"
    )


def _wrong_classes(table: Annotations, found: Detections) -> str | None:
    """Looks for boxes that fit, but under the wrong class."""
    fit = _ap50_of_one_class(table, found)
    if fit < _NEAR_ZERO:
        return None
    as_is = _ap50(table, found)
    for shift in (1, -1):
        labels = found.labels + shift
        known = (labels >= 1) & (labels <= len(table.classes))
        moved = Detections(found.rows, found.boxes, found.scores, labels)
        value = _ap50(table, Detections(*(column[known] for column in moved)))
        if value >= max(fit / 2, 2 * as_is):
            return f"with every label {shift:+d}, AP50 is {value:.2f}; labels are 1..C, and 0 is the background"
    return (
        f"the boxes fit (AP50 is {fit:.2f} when classes are ignored) but the classes do not; "
        "train it longer, or compare the order of the class names with the data set's"
    )


def _ap50_of_one_class(table: Annotations, found: Detections) -> float:
    """Returns AP50 when every object and every detection is of one and the same class."""
    objects = replace(
        table,
        classes=("object",),
        labels=np.ones_like(table.labels),
        category_ids=np.ones(1, dtype=np.int64),
    )
    detected = found._replace(labels=np.ones_like(found.labels))
    return _ap50(objects, detected)


def _ap50(table: Annotations, found: Detections) -> float:
    return float(voc.evaluate(table, found._asdict(), (0.5,))["metrics"]["voc_area_ap50"])


def _weak(table: Annotations, found: Detections) -> str:
    """Describes detections that are in the right frame and find nothing."""
    images = len(np.unique(found.rows))
    if images < (np.diff(table.offsets) > 0).sum() / 2:
        return (
            f"only {images} of {len(table)} images have any detection; the model is hardly "
            "trained, the score threshold is too high, or this is another split"
        )
    if found.scores.max() < 0.1:
        return (
            f"the best score of all is {found.scores.max():.2g}; the model calls everything "
            "background: train it longer, or check the learning rate"
        )
    return (
        "the boxes do not lie on objects (median side "
        f"{_median_side(found.boxes):.0f} px, objects {_median_side(table.boxes):.0f} px); check "
        "the anchor sizes, and that detections and images go together"
    )


def _median_side(boxes: np.ndarray) -> float:
    """Returns the median of sqrt(width * height)."""
    return float(np.median(np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))))
