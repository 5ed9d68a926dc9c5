"""Oracle analysis: average precision if every detection had the right class, or the right box."""

from __future__ import annotations

import numpy as np

from grcn.data.annotations import Annotations
from grcn.evaluation import coco
from grcn.evaluation.detections import Detections
from grcn.evaluation.matching import Pairs, most_overlapped
from grcn.evaluation.tide import BACKGROUND


def oracle_split(table: Annotations, found: Detections, pairs: Pairs) -> dict[str, float | None]:
    """Computes COCO's AP (IoU 0.50 to 0.95) of detections whose class or box is set right.

    A detection is about an object that it overlaps with an IoU of at least 0.1, TIDE's threshold; one that is about
    nothing is unchanged. A crowd is no such object. A difficult one is, so that a detection of it counts for
    nothing, as it should. Scores are unchanged.

    Args:
        pairs: of :func:`grcn.evaluation.matching.overlapping`.

    Returns:
        - ``no_duplicates``: nothing is set right, but of the detections about one object of their class, the one that
          each overlaps most, only the best-scored stays. It isolates this effect in the next three;
        - ``right_class``: each takes the class of the object that it overlaps most; then duplicates go likewise;
        - ``right_box``: each takes the box of the object of its class that it overlaps most; then duplicates go;
        - ``right_class_and_box``: both, of the object that it overlaps most; then duplicates go. What it lacks of 1 is
          missed objects and detections of the background.

        Values are in 0-1, or None where there are no objects to find. That one is above another is usual, not
        necessary: the best-scored of two duplicates may have the worse box.
    """
    versions = oracle_versions(table, found, pairs)
    return {name: coco.evaluate(table, some._asdict())["metrics"]["coco_ap"] for name, some in versions.items()}


def oracle_versions(table: Annotations, found: Detections, pairs: Pairs) -> dict[str, Detections]:
    """Returns the detections that :func:`oracle_split` scores, with the same keys."""
    count = len(found.rows)
    about = pairs.where((pairs.ious >= BACKGROUND) & ~table.iscrowd[pairs.objects])
    of_own_class = found.labels[about.detections] == table.labels[about.objects]
    nearest, own = (most_overlapped(some, count)[0] for some in (about, about.where(of_own_class)))
    labels = np.where(nearest >= 0, table.labels[nearest], found.labels)
    return {
        "no_duplicates": _best_scored(found, own),
        "right_class": _best_scored(found._replace(labels=labels), nearest),
        "right_box": _best_scored(found._replace(boxes=_boxes(table, found, own)), own),
        "right_class_and_box": _best_scored(
            found._replace(labels=labels, boxes=_boxes(table, found, nearest)), nearest
        ),
    }


def _boxes(table: Annotations, found: Detections, objects: np.ndarray) -> np.ndarray:
    return np.where((objects >= 0)[:, None], table.boxes[objects], found.boxes)


def _best_scored(found: Detections, objects: np.ndarray) -> Detections:
    """Keeps the best-scored of the detections about one object, the first of ties, and all about none (-1)."""
    order = np.lexsort((-found.scores, objects))
    repeats = np.zeros(len(objects), dtype=bool)
    repeats[order[1:]] = (objects[order[1:]] == objects[order[:-1]]) & (objects[order[1:]] >= 0)
    return Detections(*(column[~repeats] for column in found))
