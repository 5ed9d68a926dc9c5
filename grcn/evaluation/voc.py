"""Average precision by the PASCAL VOC protocol, as the development kits of 2007 and 2010 define it.

A detection considers only the object of its own image and class that it overlaps most. It matches
if their IoU reaches the threshold. The best-scored detection that matches an object is a true
positive, later ones are false positives, even where another object was near. A detection that
matches a difficult or crowd object counts for nothing, and such objects need not be found.

Boxes are continuous, so plain IoU is what the kit computes with ``+ 1`` from its inclusive pixels.
Detections of equal score are ranked by row, then by their place in the packed arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from grcn.data.annotations import Annotations
from grcn.evaluation.detections import Detections, Matches, check
from grcn.evaluation.matching import ignored_objects, in_chunks, iou, objects_to_find, slices_of_classes


class _Ranked(NamedTuple):
    """Detections sorted by class, then by falling score, with the object each overlaps most."""

    rows: np.ndarray  # [K] int64, the image's row in the table
    labels: np.ndarray  # [K] int64, ascending
    objects: np.ndarray  # [K] int64, index in the table's objects; -1 where there is none
    ious: np.ndarray  # [K] float64, IoU with that object; 0 where there is none


def evaluate(
    table: Annotations, detections: Mapping[str, Any], thresholds: Sequence[float] = (0.5, 0.7, 0.75)
) -> dict[str, Any]:
    """Computes the average precision of packed detections by the VOC protocol.

    Args:
        table: annotations of all images that count, whether or not anything is detected in them.
        detections: packed detections (:mod:`grcn.evaluation.detections`), original pixels.
        thresholds: IoU from which a detection matches, inclusive; each in (0, 1].

    Returns:
        ``{"metrics": {name: value}, "per_class": {class: {name: value}}}``. For each threshold
        there is ``voc07_ap50`` (mean precision at 11 recalls) and ``voc_area_ap50`` (area under
        the curve), in 0-1. ``metrics`` averages over the classes that have objects to find;
        ``per_class`` also holds their number, ``objects``. A value is None where there are none.

    Raises:
        DataError: the table has no object, or a detection cannot be scored; names the image.
    """
    ranked = _rank(table, check(table, detections))
    counts = objects_to_find(table).sum(1)
    per_class: dict[str, dict[str, Any]] = {name: {} for name in table.classes}
    metrics = {}
    for threshold in thresholds:
        hits_of_classes = _hits(table, ranked, threshold)
        for protocol, average_precision in (("voc07", eleven_point_ap), ("voc_area", area_ap)):
            key = f"{protocol}_ap{100 * threshold:g}"
            values = [
                average_precision(hits, count) if count else None
                for hits, count in zip(hits_of_classes, counts, strict=True)
            ]
            for figures, value in zip(per_class.values(), values, strict=True):
                figures[key] = value
            defined = [value for value in values if value is not None]
            metrics[key] = float(np.mean(defined)) if defined else None
    for figures, count in zip(per_class.values(), counts.tolist(), strict=True):
        figures["objects"] = count
    return {"metrics": metrics, "per_class": per_class}


def curves(
    table: Annotations, detections: Mapping[str, Any], thresholds: Sequence[float] = (0.5,)
) -> list[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Returns, for each threshold, the precision-recall curve of each class that has objects to find.

    Returns:
        ``[{class: (recall, precision)}]``, each float64 ``[D]`` with one point per detection that
        counts, from the best score to the worst; precision is not interpolated.
    """
    ranked = _rank(table, check(table, detections))
    counts = objects_to_find(table).sum(1)
    return [
        {
            name: (np.cumsum(hits) / count, _precision(hits))
            for name, count, hits in zip(table.classes, counts, _hits(table, ranked, threshold), strict=True)
            if count
        }
        for threshold in thresholds
    ]


def matches(table: Annotations, detections: Mapping[str, Any], threshold: float) -> list[Matches]:
    """Matches detections to objects at one IoU; returns for each class the input of its precision."""
    ranked = _rank(table, check(table, detections))
    hits, counted = _hits_and_counted(table, ranked, threshold)
    slices = slices_of_classes(ranked.labels, len(table.classes))
    return [
        Matches(ranked.rows[own], hits[None, own], counted[None, own], count)
        for own, count in zip(slices, objects_to_find(table), strict=True)
    ]


def eleven_point_ap(hits: np.ndarray, count: int) -> float:
    """Averages the interpolated precision at recall 0, 0.1, …, 1 (VOC 2007).

    The eleven levels are ``k * 0.1`` in floating point, as in every evaluator behind published
    figures: 3 of 10 objects fall just short of the level 0.3, which is a little more.

    Args:
        hits: bool ``[D]``, whether each detection is a true positive, best score first.
        count: number of objects to find, at least 1.
    """
    reached = np.searchsorted(np.cumsum(hits) / count, np.arange(11) * 0.1)
    return float(np.append(_interpolated(hits), 0.0)[reached].mean())


def area_ap(hits: np.ndarray, count: int) -> float:
    """Integrates the interpolated precision over recall (VOC 2010 and later).

    Recall rises by 1 / count at each true positive and nowhere else.

    Args:
        hits: bool ``[D]``, whether each detection is a true positive, best score first.
        count: number of objects to find, at least 1.
    """
    return float(_interpolated(hits)[hits].sum() / count)


def _precision(hits: np.ndarray) -> np.ndarray:
    return np.cumsum(hits) / np.arange(1, len(hits) + 1)


def _interpolated(hits: np.ndarray) -> np.ndarray:
    """Returns at each rank the best precision at that rank or a later one."""
    return np.maximum.accumulate(_precision(hits)[::-1])[::-1]


def _hits(table: Annotations, ranked: _Ranked, threshold: float) -> list[np.ndarray]:
    """Returns bool ``[D]`` per class: is each detection that counts a true positive, best first."""
    hits, counted = _hits_and_counted(table, ranked, threshold)
    hits, labels = hits[counted], ranked.labels[counted]
    return [hits[own] for own in slices_of_classes(labels, len(table.classes))]


def _hits_and_counted(table: Annotations, ranked: _Ranked, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns bool ``[K]`` twice: which detections are true positives, and which count at all."""
    matched = (ranked.objects >= 0) & (ranked.ious >= threshold)
    ignored = matched & ignored_objects(table)[ranked.objects]
    candidates = np.flatnonzero(matched & ~ignored)
    # All detections that may match an object are of its class, so the first is the best-scored.
    first = np.unique(ranked.objects[candidates], return_index=True)[1]
    hits = np.zeros(len(matched), dtype=bool)
    hits[candidates[first]] = True
    return hits, ~ignored


def _rank(table: Annotations, found: Detections) -> _Ranked:
    """Sorts detections by class and score; finds the object (the first of ties) of each."""
    order = np.lexsort((found.rows, -found.scores, found.labels))
    rows, labels, boxes = found.rows[order], found.labels[order], found.boxes[order]
    keys = np.repeat(np.arange(len(table)), np.diff(table.offsets)) * (len(table.classes) + 1)
    keys += table.labels
    by_key = np.argsort(keys, kind="stable")
    queries = rows * (len(table.classes) + 1) + labels
    starts = np.searchsorted(keys[by_key], queries, side="left")
    counts = np.searchsorted(keys[by_key], queries, side="right") - starts

    objects = np.full(len(rows), -1, dtype=np.int64)
    ious = np.zeros(len(rows))
    for part, places in in_chunks(starts, counts):
        if len(part):
            n = counts[part]
            first = np.cumsum(n) - n
            near = by_key[places]
            overlaps = iou(np.repeat(boxes[part], n, axis=0), table.boxes[near])
            ious[part] = np.maximum.reduceat(overlaps, first)
            is_best = overlaps == np.repeat(ious[part], n)
            best = np.minimum.reduceat(np.where(is_best, np.arange(len(near)), len(near)), first)
            objects[part] = near[best]
    return _Ranked(rows, labels, objects, ious)
