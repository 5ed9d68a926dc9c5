"""Bootstrap over images: how far a figure may be off because of the images that it was measured on.

Detections are matched to objects once; a resample then only weights each image by how often it was drawn. Two detectors
on the same draws are compared in pairs, which cancels how hard the drawn images are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from grcn.evaluation.detections import Matches

COCO_RECALLS = np.linspace(0, 1, 101)
VOC07_RECALLS = np.arange(11) * 0.1


def draws(images: int, count: int, seed: int = 0) -> np.ndarray:
    """Draws as many images as there are, with replacement, ``count`` times.

    Returns:
        int64 ``[count, images]``: how often each image was drawn. The first row is all ones, the images as they are.
    """
    uniform = np.full(images, 1 / images)
    drawn = np.random.default_rng(seed).multinomial(images, uniform, size=count)
    return np.concatenate((np.ones((1, images), dtype=np.int64), drawn))


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """Returns the interval of 95 % of a figure's values ``[B]`` on resampled images; None if all are NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, [2.5, 97.5]).tolist()
    return low, high


def resampled(
    classes: Sequence[Matches],
    times: np.ndarray,
    recalls: np.ndarray = COCO_RECALLS,
    advance: Callable[[], object] = lambda: None,
) -> np.ndarray:
    """Computes average precision on resampled images.

    Args:
        classes: for each class, the outcome of its detections, by :func:`grcn.evaluation.coco.matches` or
            :func:`grcn.evaluation.voc.matches`.
        times: int64 ``[B, N]``, of :func:`draws`.
        recalls: those at which precision is averaged: COCO's 101 or VOC 2007's 11.
        advance: called after each resample, for a progress bar.

    Returns:
        float64 ``[B, T]``: at each overlap, the mean over those classes that have objects in the resample; NaN where
        there are none.
    """
    curves = Curves(classes, recalls)
    found = np.full((len(times), curves.overlaps), np.nan)
    for drawn, row in zip(times, found, strict=True):
        values = curves.average_precision(drawn)
        present = curves.objects @ drawn > 0
        if present.any():
            row[:] = values[:, present].mean(axis=1)
        advance()
    return found


class Places:
    """Some of the detections of all classes, which are in one row, class after class.

    Args:
        lengths: of each class, how many detections it has.
        places: int64 ``[P]``, rising, in that row.
    """

    def __init__(self, lengths: Sequence[int], places: np.ndarray) -> None:
        starts = np.cumsum([0, *lengths])
        self.bounds = np.searchsorted(places, starts)  # of each class among the places
        self.labels = np.repeat(np.arange(len(lengths)), np.diff(self.bounds))
        self._starts, self._ends = starts[self.labels], places + 1

    def sums(self, total: np.ndarray) -> np.ndarray:
        """Returns the sums within a class up to and including each place, ``[P]``, of a :func:`running_total`."""
        return total[self._ends] - total[self._starts]


def running_total(weights: np.ndarray) -> np.ndarray:
    """Sums weights ``[D]``: ``[D + 1]``, from 0 on, int64 for integers."""
    total = np.zeros(len(weights) + 1, np.result_type(weights, np.int64) if weights.dtype.kind == "i" else np.float64)
    np.cumsum(weights, out=total[1:])
    return total


class Curves:
    """Precision over recall of all classes at T overlaps, on images that are counted as often as they were drawn.

    Args:
        classes: as in :func:`resampled`.
        recalls: likewise.
    """

    def __init__(self, classes: Sequence[Matches], recalls: np.ndarray = COCO_RECALLS) -> None:
        self._recalls = recalls
        self.objects = np.stack([one.objects for one in classes])
        self._rows = np.concatenate([one.rows for one in classes])
        lengths = [len(one.rows) for one in classes]
        hits, counted = (
            np.concatenate([getattr(one, name) for one in classes], axis=1) for name in ("hits", "counted")
        )
        self._curves = [_Curve(lengths, *of_overlap) for of_overlap in zip(hits, counted, strict=True)]
        self.overlaps = len(hits)

    def average_precision(self, drawn: np.ndarray) -> np.ndarray:
        """Returns AP, float64 ``[T, C]``, for images that count ``drawn`` times, int64 ``[N]``; 0 without objects."""
        weights = drawn.astype(np.int32)[self._rows]
        total = running_total(weights)
        needed = _needed(self._recalls, self.objects @ drawn)
        return np.stack([curve.average_precision(weights, total, needed) for curve in self._curves])


class _Curve:
    """The precision-recall curves at one overlap.

    Precision can be the best at a recall or a higher one only where a detection is a true positive, so nothing is
    computed elsewhere.
    """

    def __init__(self, lengths: Sequence[int], hits: np.ndarray, counted: np.ndarray) -> None:
        self._hits, self._ignored = np.flatnonzero(hits), np.flatnonzero(~counted)
        self._at = Places(lengths, self._hits)
        self._found_at = Places(np.diff(self._at.bounds).tolist(), np.arange(len(self._hits)))
        # How many ignored detections precede each hit, and the first of its class.
        starts = np.cumsum([0, *lengths])[self._at.labels]
        self._ignored_before = [np.searchsorted(self._ignored, places) for places in (self._hits, starts)]
        # Lifts each class above those after it, so that one running maximum serves all.
        self._lift = 2.0 * (len(lengths) - 1 - np.arange(len(lengths)))
        self._lifts = self._lift[self._at.labels]

    def average_precision(self, weights: np.ndarray, total: np.ndarray, needed: np.ndarray) -> np.ndarray:
        bounds = self._at.bounds
        found = running_total(weights[self._hits])
        counted = self._at.sums(total)
        if len(self._ignored):
            ignored = running_total(weights[self._ignored])
            counted -= ignored[self._ignored_before[0]] - ignored[self._ignored_before[1]]
        precision = np.append(self._found_at.sums(found) / np.maximum(counted, 1) + self._lifts, 0.0)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        # Recall 0 needs nothing to be found, so it would be reached before the class begins.
        reached = np.maximum(np.searchsorted(found[1:], found[bounds[:-1], None] + needed), bounds[:-1, None])
        return np.where(reached < bounds[1:, None], best[reached] - self._lift[:, None], 0.0).mean(axis=1)


def _needed(recalls: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Returns how many of ``objects`` ``[C]`` have to be found for each recall, int64 ``[C, R]``.

    The quotient is compared in floating point, as all evaluators do: 3 of 10 fall short of ``3 * 0.1``.
    """
    counts = objects[:, None]
    needed = np.ceil(recalls * counts).astype(np.int64)
    whole = np.maximum(counts, 1)
    needed -= (needed > 0) & ((needed - 1) / whole >= recalls)
    return needed + (needed / whole < recalls)
