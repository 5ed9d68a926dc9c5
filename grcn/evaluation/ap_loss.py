"""Analyses where a detector loses average precision: in classification, in localization, or elsewhere.

Four views of the same detections: TIDE's six errors (:mod:`grcn.evaluation.tide`); how well scores agree with
overlaps, the gap between the tasks that G-RCN is about; AP with classes or boxes set right
(:mod:`grcn.evaluation.oracle`); and the confusion matrix of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from grcn.data.annotations import Annotations
from grcn.evaluation import coco
from grcn.evaluation.detections import Detections, check
from grcn.evaluation.matching import Pairs, area, ignored_objects, match, overlapping, ranked
from grcn.evaluation.oracle import oracle_split
from grcn.evaluation.tide import BACKGROUND, ERRORS, FOREGROUND, Verdicts, gains, judge

# Sides in pixels whose squares separate COCO's small from medium and medium from large objects.
_MEDIUM, _LARGE = 32, 96


class Analysis(NamedTuple):
    """Results of :func:`analyse`.

    Attributes:
        figures: as they are written to the file; plain types.
        scores: float64 ``[A]``, those of the detections in ``figures["agreement"]``.
        ious: float64 ``[A]``, likewise.
        faults: float64 ``[N]``, how bad each image is: the sum of the scores of its false positives from the score
            threshold on, plus the number of objects that no detection above the threshold matches.
    """

    figures: dict[str, Any]
    scores: np.ndarray
    ious: np.ndarray
    faults: np.ndarray


def analyse(table: Annotations, detections: Mapping[str, Any], score_threshold: float = 0.3) -> Analysis:
    """Analyses where packed detections lose average precision.

    Args:
        table: annotations of all images that count, whether or not anything is detected in them.
        detections: packed detections (:mod:`grcn.evaluation.detections`), original pixels.
        score_threshold: minimum score of the detections in the confusion matrix and in ``faults``; everything else
            uses all of them, as AP does.

    Returns:
        ``figures`` has these keys; AP and gains are in 0-1, and None where there are no objects to find:

        - ``images``, ``objects`` (to find), ``detections``;
        - ``ap50``, and ``gains``: by how much it rises when one kind of error is fixed, also for ``FP`` and ``FN``;
        - ``counts``: those of the six errors;
        - ``per_class``: ``{class: {"objects", "ap50", "gains", "counts"}}``, a false positive under the class that was
          detected, a missed object under its own. A gain is that of the class: a fixed ``Cls`` error removes a false
          positive from the detected class and adds a true positive to the true class;
        - ``per_size``: ``{"small"|"medium"|"large": {"objects", "counts"}}``, by COCO's areas, up to 32² and 96²
          pixels; a false positive counts by the area of its own box, a missed object by that of the annotation;
        - ``agreement``: ``spearman`` and ``pearson`` correlation of score and IoU, and over how many ``detections``:
          those that have an IoU of at least 0.1 with an object of their class, the one that they overlap most, and
          match no difficult or crowd object. None where there are fewer than two, or all are equal;
        - ``ap_by_iou``: COCO's AP at IoU 0.50, 0.55, … 0.95;
        - ``oracles``: COCO's AP, ``measured``, and what :func:`grcn.evaluation.oracle.oracle_split` returns;
        - ``confusion``: ``score_threshold`` and ``matrix``, of :func:`confusion`.

    Raises:
        DataError: the table has no object, or a detection cannot be scored; names the image.
    """
    found = check(table, detections)
    pairs = overlapping(table, found)
    scored = coco.evaluate(table, found._asdict())
    verdicts = judge(table, found, pairs)
    ap50, gain = gains(table, found, verdicts)
    judged = verdicts.order[verdicts.own_ious[verdicts.order] >= BACKGROUND]
    scores, ious = found.scores[judged], verdicts.own_ious[judged]
    figures = {
        "images": len(table),
        "objects": int((~ignored_objects(table)).sum()),
        "detections": len(found.rows),
        "ap50": _mean(ap50),
        "gains": {name: _mean(values) for name, values in gain.items()},
        "counts": _counts(verdicts, verdicts.errors >= 0, verdicts.missed),
        "per_class": _per_class(table, found, verdicts, ap50, gain),
        "per_size": _per_size(table, found, verdicts),
        "agreement": {
            "detections": len(judged),
            "spearman": _correlation(_ranks(scores), _ranks(ious)),
            "pearson": _correlation(scores, ious),
        },
        "ap_by_iou": scored["ap_by_iou"],
        "oracles": {"measured": scored["metrics"]["coco_ap"], **oracle_split(table, found, pairs)},
        "confusion": {
            "score_threshold": score_threshold,
            "matrix": confusion(table, found, pairs, score_threshold).tolist(),
        },
    }
    return Analysis(figures, scores, ious, _faults(table, found, verdicts, score_threshold))


def confusion(table: Annotations, found: Detections, pairs: Pairs, score_threshold: float) -> np.ndarray:
    """Computes the confusion matrix of the classes, int64 ``[C + 1, C + 1]``.

    Detections from ``score_threshold`` on are matched to objects as by COCO, at IoU 0.5, but regardless of class.
    Rows are true classes, the last one background: detections that match nothing, as does the second one of an object.
    Columns are detected classes, the last one objects that are missed. Detections that match a difficult or crowd
    object, of whatever class, are left out.
    """
    classes, ignored = len(table.classes), ignored_objects(table)
    order = ranked(table, found)
    order = order[found.scores[order] >= score_threshold]
    objects = match(table, pairs, order, len(found.rows), FOREGROUND)[order]
    counted = (objects < 0) | ~ignored[objects]
    objects, detected = objects[counted], found.labels[order[counted]] - 1
    true = np.where(objects >= 0, table.labels[objects] - 1, classes)
    missed = ~ignored
    missed[objects[objects >= 0]] = False
    matrix = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    np.add.at(matrix, (true, detected), 1)
    np.add.at(matrix, (table.labels[missed] - 1, classes), 1)
    return matrix


def _per_class(
    table: Annotations, found: Detections, verdicts: Verdicts, ap50: np.ndarray, gain: Mapping[str, np.ndarray]
) -> dict[str, dict[str, Any]]:
    to_find = ~ignored_objects(table)
    return {
        name: {
            "objects": int((to_find & (table.labels == label)).sum()),
            "ap50": _mean(ap50[label - 1 : label]),
            "gains": {error: _mean(values[label - 1 : label]) for error, values in gain.items()},
            "counts": _counts(
                verdicts,
                (verdicts.errors >= 0) & (found.labels == label),
                verdicts.missed & (table.labels == label),
            ),
        }
        for label, name in enumerate(table.classes, start=1)
    }


def _per_size(table: Annotations, found: Detections, verdicts: Verdicts) -> dict[str, dict[str, Any]]:
    limits = _MEDIUM**2, _LARGE**2
    own, annotated = (np.searchsorted(limits, areas, side="left") for areas in (area(found.boxes), table.area))
    to_find = ~ignored_objects(table)
    return {
        name: {
            "objects": int((to_find & (annotated == size)).sum()),
            "counts": _counts(verdicts, (verdicts.errors >= 0) & (own == size), verdicts.missed & (annotated == size)),
        }
        for size, name in enumerate(("small", "medium", "large"))
    }


def _counts(verdicts: Verdicts, false_positives: np.ndarray, missed: np.ndarray) -> dict[str, int]:
    counts = np.bincount(verdicts.errors[false_positives], minlength=len(ERRORS))
    return dict(zip(ERRORS, [*counts[:-1].tolist(), int(missed.sum())], strict=True))


def _faults(table: Annotations, found: Detections, verdicts: Verdicts, score_threshold: float) -> np.ndarray:
    shown = found.scores >= score_threshold
    wrong = (verdicts.errors >= 0) & shown
    lost = ~ignored_objects(table)
    lost[verdicts.matches[verdicts.hits & shown]] = False
    rows = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    false_alarms = np.bincount(found.rows[wrong], weights=found.scores[wrong], minlength=len(table))
    return false_alarms + np.bincount(rows[lost], minlength=len(table))


def _mean(values: np.ndarray) -> float | None:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks values from 1; ties share the mean of their ranks."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Computes Pearson's correlation; None where it is undefined."""
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1, 1))
