"""Localization-Recall-Precision error and its optimum, oLRP (Oksuz et al., ECCV 2018, arXiv 1807.01696; TPAMI 2021,
arXiv 2011.10772).

Of a class whose detections from some score on are ``TP`` true and ``FP`` false positives, and whose objects ``FN`` are
not found, with ``tau`` the IoU from which a detection matches:

    LRP = (sum over TP of (1 - IoU) / (1 - tau)  +  FP  +  FN) / (TP + FP + FN)

oLRP is the minimum LRP over all scores of the class's detections; 0 is perfect, 1 the worst. Its three parts are taken
at that score: localization, the mean of ``1 - IoU`` over the true positives; false positives, ``FP / (TP + FP)``; and
false negatives, ``FN / (TP + FN)``. A class without a true positive has oLRP 1, false negatives 1, and no other part.
Each figure is the mean over the classes that have objects to find and have it, as in the authors' program.

Detections are matched as by COCO (:mod:`grcn.evaluation.matching`): at most 100 of a class count in an image; one that
matches a difficult or crowd object counts for nothing, and such objects need not be found. Unlike in the authors'
program a score includes all detections of this score, not the first few of ties.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grcn.data.annotations import Annotations
from grcn.evaluation.bootstrap import Places, running_total
from grcn.evaluation.detections import Detections, check
from grcn.evaluation.matching import (
    Pairs,
    ignored_objects,
    iou,
    match,
    objects_to_find,
    overlapping,
    ranked,
    slices_of_classes,
)

PARTS = ("olrp", "localization", "false_positives", "false_negatives")


class Localized(NamedTuple):
    """The detections of one class that are true or false positives, best score first."""

    rows: np.ndarray  # [D] int64, the image's row in the table
    scores: np.ndarray  # [D] float64
    ious: np.ndarray  # [D] float64, with the object that a true positive matches; NaN for a false positive
    objects: np.ndarray  # [N] int64, objects to find in each image


def evaluate(table: Annotations, detections: Mapping[str, Any], tau: float = 0.5) -> dict[str, Any]:
    """Computes oLRP and its parts.

    Args:
        table: annotations of all images that count, whether or not anything is detected in them.
        detections: packed detections (:mod:`grcn.evaluation.detections`), original pixels.
        tau: IoU from which a detection matches, inclusive; above 0 and below 1.

    Returns:
        ``{"olrp", "localization", "false_positives", "false_negatives", "per_class"}``, in 0-1; ``per_class`` is
        ``{class: the same four and "score"}``, the score from which detections count at the optimum. None where there
        are no objects, or no true positive.

    Raises:
        DataError: the table has no object, or a detection cannot be scored; names the image.
    """
    found = check(table, detections)
    curves = ErrorCurves(localized(table, found, overlapping(table, found), tau), tau)
    values, scores = curves.optima(np.ones(len(table), dtype=np.int64))
    per_class = {
        name: dict(zip((*PARTS, "score"), map(_plain, (*row, score)), strict=True))
        for name, row, score in zip(table.classes, values, scores, strict=True)
    }
    return dict(zip(PARTS, map(_plain, class_mean(values)), strict=True)) | {"per_class": per_class}


def localized(table: Annotations, found: Detections, pairs: Pairs, tau: float = 0.5) -> list[Localized]:
    """Matches detections to objects of their class at the IoU ``tau``; returns for each class the input of oLRP.

    Args:
        pairs: of :func:`grcn.evaluation.matching.overlapping`.
    """
    order, ignored = ranked(table, found), ignored_objects(table)
    own = pairs.where(found.labels[pairs.detections] == table.labels[pairs.objects])
    objects = match(table, own, order, len(found.rows), tau)
    order = order[(objects[order] < 0) | ~ignored[objects[order]]] if len(ignored) else order
    order = order[np.argsort(found.labels[order], kind="stable")]
    ious = np.full(len(order), np.nan)
    hits = objects[order] >= 0
    ious[hits] = iou(found.boxes[order[hits]], table.boxes[objects[order[hits]]])
    to_find = objects_to_find(table)
    return [
        Localized(found.rows[order[own]], found.scores[order[own]], ious[own], to_find[label])
        for label, own in enumerate(slices_of_classes(found.labels[order], len(table.classes)))
    ]


class ErrorCurves:
    """LRP of all classes over their scores, on images that are counted as often as they were drawn.

    Another false positive never lowers LRP, so it is evaluated at the scores of true positives only.

    Args:
        classes: of :func:`localized`.
        tau: IoU from which they match.
    """

    def __init__(self, classes: Sequence[Localized], tau: float = 0.5) -> None:
        self._tau = tau
        lengths = [len(one.rows) for one in classes]
        self._rows = np.concatenate([one.rows for one in classes])
        self.objects = np.stack([one.objects for one in classes])
        self._scores = np.concatenate([one.scores for one in classes])
        ious = np.concatenate([one.ious for one in classes])
        self._hits = np.flatnonzero(~np.isnan(ious))
        self._distances = 1 - ious[self._hits]
        labels = np.repeat(np.arange(len(classes)), lengths)
        changes = (labels[1:] != labels[:-1]) | (self._scores[1:] != self._scores[:-1])
        last = np.flatnonzero(np.append(changes, True)[: len(labels)])  # of each score of a class
        self._ends = last[np.unique(np.searchsorted(last, self._hits))]
        self._at = Places(lengths, self._ends)
        in_class = np.bincount(labels[self._hits], minlength=len(classes)).tolist()
        self._hits_at = Places(in_class, np.searchsorted(self._hits, self._ends, side="right") - 1)
        self._labels = labels[self._ends]
        self._present, self._starts = np.unique(self._labels, return_index=True)

    def optima(self, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the minimum LRP of each class for images that count ``drawn`` times, int64 ``[N]``.

        Returns:
            oLRP and its parts, float64 ``[C, 4]`` in the order of :data:`PARTS`, NaN where there are none; and the
            scores where they are reached, float64 ``[C]``, likewise.
        """
        objects = self.objects @ drawn
        values = np.full((len(objects), len(PARTS)), np.nan)
        values[objects > 0] = 1.0, np.nan, np.nan, 1.0
        scores = np.full(len(objects), np.nan)
        if not len(self._ends):
            return values, scores
        weights = drawn.astype(np.int32)[self._rows]
        weights_of_hits = weights[self._hits]
        counted = self._at.sums(running_total(weights))
        hits = self._hits_at.sums(running_total(weights_of_hits))
        distance = self._hits_at.sums(running_total(weights_of_hits * self._distances))
        missed = objects[self._labels] - hits
        false = counted - hits
        errors = (distance / (1 - self._tau) + false + missed) / np.maximum(hits + false + missed, 1)
        errors[hits == 0] = np.inf
        least = np.minimum.reduceat(errors, self._starts)
        reached = np.flatnonzero(errors == least[np.searchsorted(self._present, self._labels)])
        labels, first = np.unique(self._labels[reached], return_index=True)
        best = reached[first][hits[reached[first]] > 0]
        own = self._labels[best]
        parts = distance[best] / hits[best], false[best] / counted[best], missed[best] / objects[own]
        values[own] = np.stack((errors[best], *parts), axis=1)
        scores[own] = self._scores[self._ends[best]]
        return values, scores


def class_mean(values: np.ndarray) -> np.ndarray:
    """Averages ``[C, 4]`` of :meth:`ErrorCurves.optima` over the classes that have a figure; NaN where none has."""
    known = ~np.isnan(values)
    total, counts = np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0)
    return np.divide(total, counts, out=np.full(len(total), np.nan), where=counts > 0)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
