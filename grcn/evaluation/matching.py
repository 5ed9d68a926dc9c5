"""Finds overlapping detections and objects, and matches them greedily as COCO does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from grcn.data.annotations import Annotations
from grcn.evaluation.detections import Detections, Matches

# Pairs of a detection and an object whose IoU is computed at once; bounds the memory to 0.1 GB.
_PAIRS = 2**19


class Pairs(NamedTuple):
    """Detections and objects of the same image that overlap, sorted by detection, then by object.

    Attributes:
        detections: int64 ``[P]``, places in the packed detections.
        objects: int64 ``[P]``, places in the table's objects.
        ious: float64 ``[P]``, above 0. With a crowd it is the share of the detection that lies inside, as COCO's.
    """

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray

    def where(self, chosen: np.ndarray) -> Pairs:
        """Returns the pairs that a bool mask ``[P]`` selects."""
        return Pairs(*(column[chosen] for column in self))


def overlapping(table: Annotations, found: Detections) -> Pairs:
    """Finds all pairs of a detection and an object of its image, of whatever class, that overlap."""
    starts, counts = table.offsets[found.rows], np.diff(table.offsets)[found.rows]
    parts = []
    for part, objects in in_chunks(starts, counts):
        detections = np.repeat(part, counts[part])
        a, b = found.boxes[detections], table.boxes[objects]
        ious = np.where(table.iscrowd[objects], share_inside(a, b), iou(a, b))
        parts.append(Pairs(detections, objects, ious).where(ious > 0))
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def in_chunks(starts: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields detections and their candidates, in chunks of bounded memory.

    Args:
        starts, counts: int64 ``[K]``: the candidates of detection ``k`` are at ``starts[k]``, ``starts[k] + 1``, …,
            ``counts[k]`` places.

    Yields:
        Some detections, int64 ``[p]``, in order, and the places of the first, of the second and so on in one row, int64
        ``[P]``. Without any detection there is one empty chunk.
    """
    paired = np.flatnonzero(counts)
    chunks = np.cumsum(counts[paired]) // _PAIRS
    for part in np.split(paired, np.flatnonzero(np.diff(chunks)) + 1):
        n = counts[part]
        yield part, np.arange(n.sum()) + np.repeat(starts[part] - (np.cumsum(n) - n), n)


def most_overlapped(pairs: Pairs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the object that each of ``count`` detections overlaps most.

    Returns:
        The object, int64 ``[count]``, the first of ties, -1 where there is none; and the IoU with it, float64
        ``[count]``, 0 where there is none.
    """
    objects, ious = np.full(count, -1, dtype=np.int64), np.zeros(count)
    order = np.lexsort((pairs.objects, -pairs.ious, pairs.detections))
    detections, first = np.unique(pairs.detections[order], return_index=True)
    objects[detections], ious[detections] = pairs.objects[order[first]], pairs.ious[order[first]]
    return objects, ious


def ranked(table: Annotations, found: Detections, most: int = 100) -> np.ndarray:
    """Returns the detections that COCO scores, best first: at most ``most`` of a class in an image.

    Equal scores are ranked by image id, then by their place in the packed arrays. int64 ``[D]``.
    """
    ids = np.argsort(np.argsort(table.image_ids, kind="stable"))
    order = np.lexsort((ids[found.rows], -found.scores))
    keys = (found.rows * (len(table.classes) + 1) + found.labels)[order]
    by_key = np.argsort(keys, kind="stable")
    places = np.arange(len(keys)) - np.searchsorted(keys[by_key], keys[by_key])
    return order[np.sort(by_key[places < most])]


def match(table: Annotations, pairs: Pairs, order: np.ndarray, count: int, threshold: float = 0.5) -> np.ndarray:
    """Matches detections and objects as COCO does: the best-scored chooses first.

    It takes the free object that it overlaps most (the last of ties), from the IoU ``threshold`` on. Only where there
    is none does it take an ignored one, difficult or crowd; a crowd stays free.

    Args:
        pairs: those that may match.
        order: int64 ``[D]``, the detections that may match, best first.
        count: number of all detections.

    Returns:
        The object of each detection, int64 ``[count]``; -1 where there is none.
    """
    rank = np.full(count, count)
    rank[order] = np.arange(len(order))
    close = pairs.where((pairs.ious >= threshold) & (rank[pairs.detections] < count))
    turn = np.lexsort((-close.objects, -close.ious, ignored_objects(table)[close.objects], rank[close.detections]))
    matched = np.full(count, -1, dtype=np.int64)
    taken = np.zeros(len(table.boxes), dtype=bool)
    for k, m in zip(close.detections[turn].tolist(), close.objects[turn].tolist(), strict=True):
        if matched[k] < 0 and not taken[m]:
            matched[k], taken[m] = m, not table.iscrowd[m]
    return matched


def matches_by_class(table: Annotations, found: Detections, pairs: Pairs, thresholds: Sequence[float]) -> list[Matches]:
    """Matches detections to objects of their class, as COCO does, at each IoU of ``thresholds``.

    Args:
        pairs: of :func:`overlapping`.

    Returns:
        for each class the outcome of its detections; at most 100 of a class in an image.
    """
    order, ignored = ranked(table, found), ignored_objects(table)
    order = order[np.argsort(found.labels[order], kind="stable")]
    own = pairs.where(found.labels[pairs.detections] == table.labels[pairs.objects])
    by_score = order[np.argsort(-found.scores[order], kind="stable")]
    objects = np.stack([match(table, own, by_score, len(found.rows), threshold)[order] for threshold in thresholds])
    counted = (objects < 0) | ~ignored[objects] if len(ignored) else np.ones(objects.shape, dtype=bool)
    hits = (objects >= 0) & counted
    to_find = objects_to_find(table)
    return [
        Matches(found.rows[order[own]], hits[:, own], counted[:, own], to_find[label])
        for label, own in enumerate(slices_of_classes(found.labels[order], len(table.classes)))
    ]


def slices_of_classes(labels: np.ndarray, classes: int) -> list[slice]:
    """Returns the slice of each of the labels 1..C in sorted ``labels``."""
    return list(itertools.starmap(slice, itertools.pairwise(np.searchsorted(labels, np.arange(1, classes + 2)))))


def objects_to_find(table: Annotations) -> np.ndarray:
    """Counts the objects of each class in each image that are neither difficult nor crowd, int64 ``[C, N]``."""
    return count_objects(table, ~ignored_objects(table))


def count_objects(table: Annotations, chosen: np.ndarray) -> np.ndarray:
    """Counts the ``chosen`` objects, bool ``[M]``, of each class in each image, int64 ``[C, N]``."""
    rows = np.repeat(np.arange(len(table)), np.diff(table.offsets))
    places = (table.labels[chosen] - 1) * len(table) + rows[chosen]
    return np.bincount(places, minlength=len(table.classes) * len(table)).reshape(len(table.classes), len(table))


def ignored_objects(table: Annotations) -> np.ndarray:
    """Returns which objects need not be found, the difficult and the crowds: bool ``[M]``."""
    return table.difficult | table.iscrowd


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes the IoU ``[P]`` of paired xyxy boxes ``[P, 4]``; 0 where both have no area."""
    common = _intersection(a, b)
    return _ratio(common, area(a) + area(b) - common)


def share_inside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Computes how much of each box ``a`` lies in its box ``b``, both xyxy ``[P, 4]``, in 0-1; 0 without area."""
    return _ratio(_intersection(a, b), area(a))


def area(boxes: np.ndarray) -> np.ndarray:
    """Computes the areas ``[P]`` of xyxy boxes ``[P, 4]``, in square pixels."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    sides = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    return np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
