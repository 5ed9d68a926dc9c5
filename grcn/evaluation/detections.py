"""Packed detections, which both evaluators score, and their checks.

Packed detections are a dict of arrays with one entry per detection: ``rows`` int64 ``[K]`` (the
image's row in the table), ``boxes`` ``[K, 4]`` (absolute xyxy in pixels of the original image, the
table's frame), ``scores`` ``[K]`` and ``labels`` int64 ``[K]`` (1..C).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from grcn.data.annotations import Annotations
from grcn.data.faults import shown
from grcn.errors import DataError


class Detections(NamedTuple):
    """Packed detections that passed :func:`check`: int64 rows and labels, float64 otherwise."""

    rows: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Matches(NamedTuple):
    """Outcome of the detections of one class, best score first, at each of T overlaps."""

    rows: np.ndarray  # [D] int64, the image's row in the table
    hits: np.ndarray  # [T, D] bool, true positives
    counted: np.ndarray  # [T, D] bool, false for those that count for nothing
    objects: np.ndarray  # [N] int64, objects to find in each image


def check(table: Annotations, detections: Mapping[str, Any]) -> Detections:
    """Converts packed detections to the types used in computations; refuses those that cannot be scored.

    Args:
        table: the annotations that the detections are scored against.
        detections: packed detections, numpy arrays of any real type; length 0 is fine.

    Raises:
        DataError: the table holds no object (where all are crowd or difficult, AP is None); or a
            detection has a row or label that the table lacks, a box or score that is not finite,
            or a reversed box. Names the image.
        ValueError: the arrays disagree in length.
    """
    if not len(table.boxes):
        check_objects(table)
    rows = np.asarray(detections["rows"], dtype=np.int64).reshape(-1)
    boxes = np.asarray(detections["boxes"], dtype=np.float64).reshape(-1, 4)
    scores = np.asarray(detections["scores"], dtype=np.float64).reshape(-1)
    labels = np.asarray(detections["labels"], dtype=np.int64).reshape(-1)
    lengths = len(rows), len(boxes), len(scores), len(labels)
    if len(set(lengths)) > 1:
        raise ValueError(f"rows, boxes, scores and labels differ in length (got {lengths})")

    for k in np.flatnonzero((rows < 0) | (rows >= len(table)))[:1]:
        raise DataError(
            f"{table.name}: detection {k} belongs to no image (got row {rows[k]} of "
            f"{len(table)}); score detections against the data set they were made on"
        )
    classes = len(table.classes)
    faults = (
        (f"label is not in 1..{classes}", (labels < 1) | (labels > classes), labels),
        ("score is not finite", ~np.isfinite(scores), scores),
        ("box is not finite", ~np.isfinite(boxes).all(axis=1), boxes),
        ("box is not x1, y1, x2, y2", (boxes[:, 2:] < boxes[:, :2]).any(axis=1), boxes),
    )
    for fault, wrong, values in faults:
        for k in np.flatnonzero(wrong)[:1]:
            raise DataError(
                f"{_image_name(table, rows[k])}: a detection's {fault} (got {values[k].tolist()}, "
                f"{wrong.sum()} such); look for a diverged model or a broken results file"
            )
    return Detections(rows, boxes, scores, labels)


def check_objects(table: Annotations) -> None:
    """Raises a DataError for a table without objects to find: AP would be undefined, whatever is detected."""
    if (table.iscrowd | table.difficult).all():
        raise DataError(
            f"{table.name}: nothing to evaluate (got 0 objects to find in {len(table)} images, {len(table.boxes)} "
            "crowd or difficult); check the annotations, the split and eval.limit"
        )


def _image_name(table: Annotations, row: int) -> str:
    """Returns an image's file, or its id where images are no files."""
    return os.fsdecode(table.files[row]) or f"{table.name}: image {shown(table.image_ids[row])}"
